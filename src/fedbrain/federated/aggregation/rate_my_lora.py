"""Rate-My-LoRA: a client whose validation accuracy falls from one round to the next counts less.

He et al., "Rate-My-LoRA: Efficient and Adaptive Federated Model Tuning for Cardiac MRI Segmentation", ISBI 2025.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.rule import State, Tensors, Update, add_weighted

PENALTIES = ("ratio", "exp")
DENOMINATORS = ("literal", "normalised")
FLOOR = 1e-6  # under the previous accuracy, so that 0 does not divide


@dataclass(frozen=True)
class RateMyLoRA:
    """W_next = W + sum_k w_k(t) n_k D_k / sum_k n_k, where w_k(t) in [0, 1] penalises a falling accuracy.

    From the paper: the average by scans, and a penalty that compares a client's validation accuracy over rounds; the
    denominator carries no w, so that a penalty shrinks the step (``denominator="normalised"`` divides by sum_k w_k n_k).
    The penalty's exact form is our choice, two are offered:

        "ratio"   w = min(1, a_t / max(a_{t-1}, 1e-6))
        "exp"     w = exp(-gamma max(0, a_{t-1} - a_t))

    with w = 1 in a client's first round and for a client that reports no accuracy. Ours too: a_t is the balanced accuracy
    of the client's own model after its local training of round t, on the client's own validation scans (``local_score``).
    The paper averages the products B_k A_k of LoRA; for a model without LoRA the rule acts on D_k.
    """

    penalty: str = "ratio"
    gamma: float = 5.0
    denominator: str = "literal"
    needs: ClassVar[frozenset[str]] = frozenset({"local_score"})

    def __post_init__(self):
        for name, known in (("penalty", PENALTIES), ("denominator", DENOMINATORS)):
            if (value := getattr(self, name)) not in known:
                raise StudyError(f"aggregation rate_my_lora: {name} {value!r} is unknown; known: {', '.join(known)}")
        if not self.gamma > 0:
            raise StudyError(f"aggregation rate_my_lora: gamma must be above 0, it is {self.gamma}")

    def init(self, tensors: Tensors, clients: Sequence[str]) -> State:
        return State(0, tensors)

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        accuracies = {u.client: float(u.scalars["local_score"]) for u in updates if "local_score" in u.scalars}
        penalised = {u.client: u.scans * self._rate(state, accuracies, u.client) for u in updates}
        normalised = self.denominator == "normalised"
        total = sum(penalised.values()) if normalised else sum(update.scans for update in updates)
        # All penalised to 0: no step, whichever the denominator.
        weights = {client: value / total if total > 0 else 0.0 for client, value in penalised.items()}
        tensors = add_weighted(state.tensors, updates, weights)
        memory = {**state.memory, **accuracies}
        return replace(state, round=state.round + 1, tensors=tensors, memory=memory), tensors, weights

    def _rate(self, state: State, accuracies: dict[str, float], client: str) -> float:
        if client not in accuracies or client not in state.memory:
            return 1.0
        now, before = accuracies[client], state.memory[client]
        if self.penalty == "ratio":
            return min(1.0, now / max(before, FLOOR))
        return math.exp(-self.gamma * max(0.0, before - now))
