"""The plain averages: SimpleAvg and FedAvg."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fedbrain.federated.aggregation.rule import State, Tensors, Update, add_weighted, by_scans


@dataclass(frozen=True)
class SimpleAvg:
    """Every client counts the same: p_k = 1/K over the K clients of the round."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def init(self, tensors: Tensors, clients: Sequence[str]) -> State:
        return State(0, tensors)

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        return _average(state, updates, {update.client: 1 / len(updates) for update in updates})


@dataclass(frozen=True)
class FedAvg:
    """A client counts by its training scans: p_k = n_k / sum n (McMahan et al., AISTATS 2017)."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def init(self, tensors: Tensors, clients: Sequence[str]) -> State:
        return State(0, tensors)

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        return _average(state, updates, by_scans(updates))


def _average(state: State, updates: Sequence[Update], weights: dict[str, float]):
    tensors = add_weighted(state.tensors, updates, weights)
    return replace(state, round=state.round + 1, tensors=tensors), tensors, weights
