"""Server optimizers: the mean update is taken as a gradient, and the server steps along it with a memory of its own.

With the pseudo-gradient D = sum_k (n_k / N) D_k, so that W + D is what FedAvg gives:

    FedAvgM    u <- momentum u + D                      W <- W + eta u
    FedAdam    m <- b1 m + (1 - b1) D                   W <- W + eta m / (sqrt(v) + tau)
               v <- b2 v + (1 - b2) D^2
    FedYogi    as FedAdam, but v <- v - (1 - b2) D^2 sign(v - D^2)

Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
arXiv 1909.06335 (FedAvgM); Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2 (FedAdam, FedYogi).

The moments are in the state, in each tensor's own type. Running statistics of a batch norm are averaged as by FedAvg: an
optimizer would extrapolate them (a variance even below 0). A client's weight is n_k / N, its part in D.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.averages import FedAvg, RunningSum
from fedbrain.federated.aggregation.rule import State, Tensors, blocks, is_statistic


@dataclass(frozen=True)
class ServerOptimizer(FedAvg):
    """Base: the mean update D by itself, and a step along it."""

    def start(self, state: State) -> Tensors:
        zero = np.zeros(())
        return {name: np.broadcast_to(zero, tensor.shape) for name, tensor in state.tensors.items()}


@dataclass(frozen=True)
class FedAvgM(ServerOptimizer):
    """FedAvg with momentum on the server. With momentum 0 and learning rate 1 it is FedAvg.

    Args:
        momentum: in [0, 1); 0.9 is what is customary.
        learning_rate: eta, of the server.
    """

    momentum: float = 0.9
    learning_rate: float = 1.0

    def __post_init__(self):
        _check("fedavgm", momentum=self.momentum, learning_rate=self.learning_rate)

    def init(self, tensors: Tensors, clients: Sequence[str]) -> State:
        return State(0, tensors, moments=_moments("velocity", tensors, 0.0))

    def step(self, state: State, total: RunningSum) -> State:
        result, moments = {}, {}
        for name, tensor in state.tensors.items():
            step = total.take(name)
            if is_statistic(name):
                result[name] = (tensor + step).astype(tensor.dtype)
                continue
            key = f"velocity/{name}"
            result[name], moments[key] = _by_blocks(self._stepped, step, tensor, state.moments[key])
        return State(state.round + 1, result, moments=moments)

    def _stepped(self, step: np.ndarray, tensor: np.ndarray, velocity: np.ndarray) -> tuple[np.ndarray, ...]:
        velocity = self.momentum * velocity + step
        return tensor + self.learning_rate * velocity, velocity


@dataclass(frozen=True)
class FedAdam(ServerOptimizer):
    """Adam on the server (Reddi et al., ICLR 2021).

    Args:
        learning_rate: eta, of the server: about what a weight moves by in a round, if its updates are well above tau. To be
            tuned; 0.01 is ours, ten steps of AdamW at 0.001. Where the clients go further in a round it wants to be larger.
        beta1, beta2: of the two running means, in [0, 1); Flower's defaults.
        tau: bounds the adaptivity from below; Flower's default.
        initial: v before the first round; None is tau^2, the least that the paper allows. Flower starts from 0.
        bias_correction: Kingma and Ba's factor sqrt(1 - b2^t) / (1 - b1^t) on eta, which the paper leaves out.
    """

    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 0.001
    initial: float | None = None
    bias_correction: bool = False

    def __post_init__(self):
        rates = {"learning_rate": self.learning_rate, "beta1": self.beta1, "beta2": self.beta2, "tau": self.tau}
        _check(type(self).__name__.lower(), **rates, initial=0.0 if self.initial is None else self.initial)
        if not isinstance(self.bias_correction, bool):
            raise StudyError(
                f"aggregation fedadam: bias_correction must be true or false, it is {self.bias_correction!r}"
            )

    def init(self, tensors: Tensors, clients: Sequence[str]) -> State:
        initial = self.tau**2 if self.initial is None else self.initial
        return State(0, tensors, moments=_moments("first", tensors, 0.0) | _moments("second", tensors, initial))

    def step(self, state: State, total: RunningSum) -> State:
        result, moments = {}, {}
        stepped = partial(self._stepped, self.learning_rate * self._correction(state.round + 1))
        for name, tensor in state.tensors.items():
            step = total.take(name)
            if is_statistic(name):
                result[name] = (tensor + step).astype(tensor.dtype)
                continue
            first, second = f"first/{name}", f"second/{name}"
            result[name], moments[first], moments[second] = _by_blocks(
                stepped, step, tensor, state.moments[first], state.moments[second]
            )
        return State(state.round + 1, result, moments=moments)

    def _stepped(self, rate: float, step: np.ndarray, tensor: np.ndarray, first: np.ndarray, second: np.ndarray):
        first = self.beta1 * first + (1 - self.beta1) * step
        second = self._second(second, step**2)
        return tensor + rate * first / (np.sqrt(second) + self.tau), first, second

    def _second(self, past: np.ndarray, square: np.ndarray) -> np.ndarray:
        return self.beta2 * past + (1 - self.beta2) * square

    def _correction(self, round: int) -> float:
        return np.sqrt(1 - self.beta2**round) / (1 - self.beta1**round) if self.bias_correction else 1.0


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """Yogi on the server (Reddi et al., ICLR 2021): v moves by at most (1 - b2) D^2 a round, so that it forgets slowly.

    Options as of FedAdam, without a bias correction.
    """

    bias_correction: ClassVar[bool] = False

    def _second(self, past: np.ndarray, square: np.ndarray) -> np.ndarray:
        return past - (1 - self.beta2) * square * np.sign(past - square)


def _check(rule: str, **options: float) -> None:
    """Raises StudyError for an option out of its range."""
    for name, value in options.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in ("momentum", "beta1", "beta2"):
            good, wanted = number and 0 <= value < 1, "from 0 to below 1"
        elif name == "initial":
            good, wanted = number and 0 <= value < float("inf"), "from 0"
        else:
            good, wanted = number and 0 < value < float("inf"), "above 0"
        if not good:
            raise StudyError(f"aggregation {rule}: {name} must be a number {wanted}, it is {value!r}")


def _moments(kind: str, tensors: Tensors, value: float) -> dict[str, np.ndarray]:
    return {f"{kind}/{name}": np.full_like(t, value) for name, t in tensors.items() if not is_statistic(name)}


def _by_blocks(function: Callable[..., tuple], step: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """``function(step, *arrays)`` element by element in float64: as many new arrays as ``arrays``, in their types."""
    results = [np.empty(array.shape, array.dtype) for array in arrays]
    step, arrays, flat = step.reshape(-1), [a.reshape(-1) for a in arrays], [r.reshape(-1) for r in results]
    for block in blocks(step.size):
        values = function(step[block], *(array[block].astype(np.float64) for array in arrays))
        for result, value in zip(flat, values):
            result[block] = value
    return results
