"""FedCE: weights from the contribution of each client, estimated in gradient space and in data space.

Jiang et al., "Fair Federated Medical Image Segmentation via Client Contribution Estimation", CVPR 2023. The two public
versions of the authors' code (in NVFlare 2.3 to 2.8, and 2.9) differ in where they clip and normalise; both are here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.rule import Rule, State, Tensors, Update, add_weighted, in_order, shares

VERSIONS = ("2.9", "2.3")
COMBINATIONS = ("plus", "times")


@dataclass(frozen=True)
class FedCE(Rule):
    """FedCE with the normalization of version "2.9" or "2.3" (the latter up to 2.8).

    Client k reports ``minus_score`` m_k(t), its score of the model without its own part (fedbrain.federated.task); m_k(0) = 0.
    With C = sum_j q_j D_j and c_k = cos(D_k, C - q_k D_k), 0 if a norm is 0, and running means over the rounds,

        g_k(t) = 1 - mean_i c_k(i)        e_k(t) = 1 - mean_i m_k(i)

    - "2.9": q is the previous p (1/K in round 0); g, e clipped from below at 1e-6 and divided by their sums: G, E;
      p ~ G + E ("plus") or G * E ("times").
    - "2.3": q = 1/K in every round; g, e divided by their sums, then clipped at 1e-3; combined, divided by the sum,
      clipped at 1e-3 and not normalised again, so that the weights need not sum to 1.

    W_next = W + sum_k p_k D_k. Dataset size plays no part. Our choices where the source is silent: the score is balanced
    accuracy; a client that reports none (no validation scans) takes the mean of those that do, and 0 if none does; means
    run over the rounds that a client took part in; a client unseen before counts 1/K before its first round.
    """

    version: str = "2.9"
    combine: str = "plus"
    needs: ClassVar[frozenset[str]] = frozenset({"minus_score"})

    def __post_init__(self):
        object.__setattr__(self, "version", str(self.version))  # YAML reads a bare 2.9 as a number
        if self.version not in VERSIONS:
            raise StudyError(f"aggregation fedce: version {self.version!r} is unknown; known: {', '.join(VERSIONS)}")
        if self.combine not in COMBINATIONS:
            raise StudyError(
                f"aggregation fedce: combine {self.combine!r} is unknown; known: {', '.join(COMBINATIONS)}"
            )

    def init(self, tensors: Tensors, clients: Sequence[str]) -> State:
        fresh = {"rounds": 0, "cosines": 0.0, "scores": 0.0, "weight": 1 / len(clients)}
        return State(0, tensors, memory={client: dict(fresh) for client in sorted(clients)})

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        updates = in_order(updates)
        memory = {client: dict(past) for client, past in state.memory.items()}
        pasts = [memory[update.client] for update in updates]

        mixture = shares(np.array([past["weight"] if self.version == "2.9" else 1.0 for past in pasts]))  # (K,) q
        cosines = leave_one_out_cosines(updates, mixture)
        scores = _minus_scores(state, updates)
        for past, cosine, score in zip(pasts, cosines, scores):
            past["rounds"] += 1
            past["cosines"] += float(cosine)
            past["scores"] += float(score)
        gradient = np.array([1 - past["cosines"] / past["rounds"] for past in pasts])  # (K,) g
        data = np.array([1 - past["scores"] / past["rounds"] for past in pasts])  # (K,) e

        weights = self._weights(gradient, data)
        for past, weight in zip(pasts, weights):
            past["weight"] = float(weight)
        by_client = {update.client: float(weight) for update, weight in zip(updates, weights)}
        tensors = add_weighted(state.tensors, updates, by_client)
        return State(state.round + 1, tensors, memory), tensors, by_client

    def _weights(self, gradient: np.ndarray, data: np.ndarray) -> np.ndarray:
        if self.version == "2.9":
            gradient, data = (shares(np.maximum(values, 1e-6)) for values in (gradient, data))
        else:
            gradient, data = (np.maximum(shares(values), 1e-3) for values in (gradient, data))
        combined = shares(gradient + data if self.combine == "plus" else gradient * data)
        return combined if self.version == "2.9" else np.maximum(combined, 1e-3)


def leave_one_out_cosines(updates: Sequence[Update], mixture: np.ndarray) -> np.ndarray:
    """c_k = cos(D_k, C - q_k D_k) with C = sum_j q_j D_j, over all tensors as one vector; 0 where a norm is 0.

    ``mixture`` is q (K,); returns (K,).
    """
    dots, own, others = np.zeros((3, len(updates)))
    for name in updates[0].delta:
        deltas = [np.asarray(update.delta[name], dtype=np.float64).ravel() for update in updates]  # K of (P,)
        for k, delta in enumerate(deltas):
            # The others are summed, not subtracted from the whole: what should cancel to 0 is then 0.
            rest = sum((q * other for j, (q, other) in enumerate(zip(mixture, deltas)) if j != k), np.zeros_like(delta))
            dots[k] += delta @ rest
            own[k] += delta @ delta
            others[k] += rest @ rest
    norms = np.sqrt(own * others)
    return np.divide(dots, norms, out=np.zeros(len(updates)), where=norms > 0)


def _minus_scores(state: State, updates: Sequence[Update]) -> np.ndarray:
    """m_k (K,): reported, or the mean of those reported; 0 in the first round, when there is no model of one's own."""
    if state.round == 0:
        return np.zeros(len(updates))
    reported = [update.scalars["minus_score"] for update in updates if "minus_score" in update.scalars]
    absent = float(np.mean(reported)) if reported else 0.0
    return np.array([update.scalars.get("minus_score", absent) for update in updates])
