"""Rate-My-LoRA: a client whose validation accuracy falls from one round to the next counts less.

He et al., "Rate-My-LoRA: Efficient and Adaptive Federated Model Tuning for Cardiac MRI Segmentation", ISBI 2025.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.merging import FLoRA
from fedbrain.federated.aggregation.rule import State, Update

PENALTIES = ("ratio", "exp")
DENOMINATORS = ("literal", "normalised")
FLOOR = 1e-6  # under the previous accuracy, so that 0 does not divide


@dataclass(frozen=True)
class RateMyLoRA(FLoRA):
    """W_next = W + sum_k w_k(t) n_k s B_k A_k / sum_k n_k, where w_k(t) in [0, 1] penalises a falling accuracy.

    The products of the clients' adapters are averaged and merged into the frozen weights, without loss of rank, and the next
    round starts with new adapters, of which B is 0 (drawn as by FLoRA, ours). All else that travels, and the whole of a model
    without adapters, takes the step along D_k in the place of s B_k A_k.

    From the paper: the average of the products by scans, their merging, and a penalty that compares a client's validation accuracy over rounds; the
    denominator carries no w, so that a penalty shrinks the step (``denominator="normalised"`` divides by sum_k w_k n_k).
    The penalty's exact form is our choice, two are offered:

        "ratio"   w = min(1, a_t / max(a_{t-1}, 1e-6))
        "exp"     w = exp(-gamma max(0, a_{t-1} - a_t))

    with w = 1 in a client's first round and for a client that reports no accuracy. Ours too: a_t is the balanced accuracy
    of the client's own model after its local training of round t, on the client's own validation scans (``local_score``).
    """

    penalty: str = "ratio"
    gamma: float = 5.0
    denominator: str = "literal"
    needs: ClassVar[frozenset[str]] = frozenset({"local_score"})
    requires: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        for name, known in (("penalty", PENALTIES), ("denominator", DENOMINATORS)):
            if (value := getattr(self, name)) not in known:
                raise StudyError(f"aggregation rate_my_lora: {name} {value!r} is unknown; known: {', '.join(known)}")
        if not self.gamma > 0:
            raise StudyError(f"aggregation rate_my_lora: gamma must be above 0, it is {self.gamma}")

    def _weigh(self, state: State, updates: Sequence[Update]) -> tuple[dict[str, float], Mapping]:
        accuracies = {u.client: float(u.scalars["local_score"]) for u in updates if "local_score" in u.scalars}
        penalised = {u.client: u.scans * self._rate(state, accuracies, u.client) for u in updates}
        normalised = self.denominator == "normalised"
        total = sum(penalised.values()) if normalised else sum(update.scans for update in updates)
        # All penalised to 0: no step, whichever the denominator.
        weights = {client: value / total if total > 0 else 0.0 for client, value in penalised.items()}
        return weights, {**state.memory, "accuracies": {**state.memory.get("accuracies", {}), **accuracies}}

    def _rate(self, state: State, accuracies: dict[str, float], client: str) -> float:
        past = state.memory.get("accuracies", {})
        if client not in accuracies or client not in past:
            return 1.0
        now, before = accuracies[client], past[client]
        if self.penalty == "ratio":
            return min(1.0, now / max(before, FLOOR))
        return math.exp(-self.gamma * max(0.0, before - now))
