"""The plain averages, SimpleAvg and FedAvg, and the running sum in which averages take one update after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedbrain.federated.aggregation.rule import Gathering, Rule, State, Tensors, Update, add_scaled, in_order


class RunningSum:
    """sum_k p_k D_k in float64, update by update, so that no more than one of them is held.

    The weights are those of all clients that were asked; where some did not come, the sum is divided by what is left of the
    weights. Updates are to come in the order of the clients' names: the sum is then the same to the last bit.

    Args:
        start: what is added to: W for W + sum_k p_k D_k.
        weights: p_k by client, of sum 1.
    """

    def __init__(self, start: Tensors, weights: Mapping[str, float]):
        self._weights, self._start = weights, start
        self._total = {name: tensor.astype(np.float64, order="C") for name, tensor in start.items()}
        self.clients: list[str] = []

    def add(self, update: Update) -> None:
        for name, total in self._total.items():
            add_scaled(total, self._weights[update.client], update.delta, name)
        self.clients.append(update.client)

    def take(self, name: str) -> np.ndarray:
        """The sum of one tensor, in float64; it is forgotten here."""
        total = self._total.pop(name)
        if len(self.clients) < len(self._weights):
            start = self._start[name]
            total = start + (total - start) / sum(self._weights[client] for client in self.clients)
        return total


@dataclass(frozen=True)
class Average(Rule):
    """Base of the rules whose weights follow from who takes part: one running sum, then a step along it."""

    def weights(self, scans: Mapping[str, int]) -> dict[str, float]:
        """p_k of each client, of sum 1, from their numbers of training scans."""
        raise NotImplementedError

    def start(self, state: State) -> Tensors:
        """What the updates are added to."""
        return state.tensors

    def step(self, state: State, total: RunningSum) -> State:
        """The state after the round, from the sum of the updates."""
        tensors = {name: total.take(name).astype(tensor.dtype) for name, tensor in state.tensors.items()}
        return replace(state, round=state.round + 1, tensors=tensors)

    def gather(self, state: State, expected: Mapping[str, int]) -> Gathering:
        return _Averaging(self, state, expected)

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        gathering = self.gather(state, {update.client: update.scans for update in updates})
        for update in in_order(updates):
            gathering.add(update)
        return gathering.finish()


class _Averaging:
    def __init__(self, rule: Average, state: State, expected: Mapping[str, int]):
        self._rule, self._state, self._expected = rule, state, expected
        self._sum = RunningSum(rule.start(state), rule.weights(expected))

    def add(self, update: Update) -> None:
        self._sum.add(update)

    def finish(self) -> tuple[State, Tensors, dict[str, float]]:
        came = {client: scans for client, scans in self._expected.items() if client in self._sum.clients}
        state = self._rule.step(self._state, self._sum)
        return state, state.tensors, self._rule.weights(came)


@dataclass(frozen=True)
class SimpleAvg(Average):
    """Every client counts the same: p_k = 1/K over the K clients of the round."""

    def weights(self, scans: Mapping[str, int]) -> dict[str, float]:
        return dict.fromkeys(scans, 1 / len(scans))


@dataclass(frozen=True)
class FedAvg(Average):
    """A client counts by its training scans: p_k = n_k / sum n (McMahan et al., AISTATS 2017)."""

    def weights(self, scans: Mapping[str, int]) -> dict[str, float]:
        total = sum(scans.values())
        return {client: count / total for client, count in scans.items()}
