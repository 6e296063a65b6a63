"""SCAFFOLD's control variates: what a client's gradients drift by is estimated and taken out of its steps.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, algorithm 1 with option II for
the client's control. It is stated for SGD: (x - y) / (steps lr) is the mean gradient of a client's steps only there. Plain
arithmetic on mappings from names to arrays, torch tensors as well as numpy arrays. Controls start at 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.averages import RunningSum, SimpleAvg
from fedbrain.federated.aggregation.rule import Gathering, State, Tensors, Update, is_statistic

if TYPE_CHECKING:
    from fedbrain.federated.local import LocalRound


@dataclass(frozen=True)
class Scaffold(SimpleAvg):
    """W <- W + eta mean_{k in S} D_k, c <- c + |S| / N mean_{k in S} (c_k,new - c_k); clients step along g - c_k + c by SGD.

    Every client counts the same, as in the paper's algorithm. c goes down beside the model and the change of c_k comes up
    beside the update, so twice as much travels; c_k stays with the client. Of N clients those that are not in a round keep
    their c_k.

    Args:
        learning_rate: of the clients' SGD; None takes training.learning_rate, which is mostly chosen for AdamW and then far
            too small.
        server_rate: eta; 1 in the paper's experiments.
    """

    learning_rate: float | None = None
    server_rate: float = 1.0

    def __post_init__(self):
        for name in ("learning_rate", "server_rate"):
            value = getattr(self, name)
            if value is None and name == "learning_rate":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise StudyError(f"aggregation scaffold: {name} must be a number above 0, it is {value!r}")

    def init(self, tensors: Tensors, clients: Sequence[str]) -> State:
        moments = {f"control/{name}": np.zeros_like(t) for name, t in tensors.items() if not is_statistic(name)}
        return State(0, tensors, {"clients": len(clients)}, moments)

    def beside(self, state: State) -> Tensors:
        return {name.removeprefix("control/"): control for name, control in state.moments.items()}

    def gather(self, state: State, expected: Mapping[str, int]) -> Gathering:
        return _Controlling(super().gather(state, expected), self.beside(state), state)

    def step(self, state: State, total: RunningSum) -> State:
        new = super().step(state, total)
        if self.server_rate == 1:
            return new
        # Statistics are measured, not trained: no step goes beyond their mean.
        stepped = {
            name: tensor
            if is_statistic(name)
            else (state.tensors[name] + self.server_rate * (tensor.astype(np.float64) - state.tensors[name])).astype(
                tensor.dtype
            )
            for name, tensor in new.tensors.items()
        }
        return State(new.round, stepped, new.memory, new.moments)

    def local(self) -> "LocalRound":
        from fedbrain.federated.local_scaffold import Controlled

        return Controlled(self.learning_rate)


class _Controlling:
    """The running sums of a round: of the updates, and of the changes of the clients' controls."""

    def __init__(self, updates: Gathering, controls: Tensors, state: State):
        self._updates, self._state = updates, state
        self._controls = {name: control.astype(np.float64) for name, control in controls.items()}

    def add(self, update: Update) -> None:
        self._updates.add(update)
        self._controls = server_control(self._controls, [update.beside], self._state.memory["clients"])

    def finish(self) -> tuple[State, Tensors, dict[str, float]]:
        state, tensors, weights = self._updates.finish()
        moments = {
            f"control/{name}": control.astype(self._state.moments[f"control/{name}"].dtype)
            for name, control in self._controls.items()
        }
        return State(state.round, tensors, state.memory, moments), tensors, weights


def corrected_gradient(gradient: Mapping, own: Mapping, server: Mapping) -> dict:
    """g - c_k + c by name: the direction of a client's step."""
    return {name: value - own[name] + server[name] for name, value in gradient.items()}


def own_control(own: Mapping, server: Mapping, before: Mapping, after: Mapping, steps: int, rate: float) -> dict:
    """A client's control after its round: c_k - c + (x - y) / (steps rate).

    ``before`` is x, the model that it received, ``after`` y, what ``steps`` steps of SGD with learning rate ``rate`` made of it.
    """
    return {name: own[name] - server[name] + (before[name] - after[name]) / (steps * rate) for name in before}


def server_control(server: Mapping, changes: Sequence[Mapping], clients: int) -> dict:
    """The server's control after a round: c + |S| / N mean_{k in S} (c_k,new - c_k) = c + sum_k change_k / N.

    ``changes`` are those of the clients of the round, in the order of their names; ``clients`` is N, how many there are in all.
    """
    return {name: value + sum(change[name] for change in changes) / clients for name, value in server.items()}
