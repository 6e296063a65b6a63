"""q-FedAvg: clients that the model serves badly count more.

Li, Sanjabi, Beirami and Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, algorithm 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.rule import Rule, State, Tensors, Update, add_weighted, check_strength, is_statistic

LEAST = 1e-10  # is added to a loss: a power below 0 of a loss of 0 is none


@dataclass(frozen=True)
class QFedAvg(Rule):
    """W <- W + sum_k F_k^q D_k / sum_j h_j / L with h_k = q F_k^(q - 1) ||L D_k||^2 + L F_k^q; with q 0 it is SimpleAvg.

    F_k is ``received_loss``: the client's mean cross-entropy of the model that it received, on its training scans, before it trains.
    The weights F_k^q L / sum_j h_j do not sum to 1: with q above 0 the step is shorter than the mean. Running statistics of a batch norm are
    averaged: they are measured, not trained.

    Args:
        q: from 0; the larger, the more equal the clients' losses shall be. Flower's default.
        learning_rate: 1 / L, the clients' learning rate with q = 0, as the paper has it for SGD. Ours is that of
            ``training.learning_rate``'s default; with AdamW it is to be chosen: the larger, the longer the steps.
    """

    q: float = 0.1
    learning_rate: float = 1e-3
    needs: ClassVar[frozenset[str]] = frozenset({"received_loss"})

    def __post_init__(self):
        check_strength("qfedavg", "q", self.q)
        rate = self.learning_rate
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
            raise StudyError(f"aggregation qfedavg: learning_rate must be a number above 0, it is {rate!r}")

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        shares, steepness = {}, 0.0  # F_k^q, and sum_k h_k / L
        for update in sorted(updates, key=lambda update: update.client):
            loss = update.scalars["received_loss"] + LEAST
            shares[update.client] = loss**self.q
            steepness += self.q * loss ** (self.q - 1) * _squared_norm(update) / self.learning_rate + loss**self.q
        weights = {client: share / steepness for client, share in shares.items()}
        statistics = {name: tensor for name, tensor in state.tensors.items() if is_statistic(name)}
        trained = {name: tensor for name, tensor in state.tensors.items() if name not in statistics}
        stepped = add_weighted(trained, updates, weights)
        stepped |= add_weighted(statistics, updates, dict.fromkeys(weights, 1 / len(weights)))
        tensors = {name: stepped[name] for name in state.tensors}
        return replace(state, round=state.round + 1, tensors=tensors), tensors, weights


def _squared_norm(update: Update) -> float:
    """||D_k||^2 over all trained tensors as one vector."""
    return sum(float(np.square(update.delta[name]).sum()) for name in update.delta if not is_statistic(name))
