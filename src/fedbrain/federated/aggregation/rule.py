"""What an aggregation rule is: pure functions over a small immutable state.

A rule is a frozen dataclass of its options with

    needs                    the scalars that every client must report for it, by name
    init(tensors, clients)   the state before the first round
    apply(state, updates)    one round: (new state, new global tensors, contribution weight of each client)

The shape follows fedjax's algorithms (state goes in, state comes out). A rule knows nothing of Flower, of messages or of
files; everything that it remembers is in its state, so a checkpoint of the state is a checkpoint of the rule.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Update:
    """What the server holds of one client after its local training of one round.

    ``delta`` is D_k = W_k - W for every tensor that travels; ``scans`` is n_k, the client's number of training scans;
    ``scalars`` are the values that the rule asked for through ``needs``. A scalar that the client cannot compute (no
    validation scans) is absent.
    """

    client: str
    delta: Tensors
    scans: int
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """A rule's state: the rounds done, the global tensors, and what the rule remembers.

    ``memory`` holds plain JSON values, ``moments`` arrays (for server optimizers); both can be written to disk as they are.
    """

    round: int
    tensors: Tensors
    memory: Mapping = field(default_factory=dict)
    moments: Tensors = field(default_factory=dict)


class Rule(Protocol):
    """The interface of an aggregation rule."""

    needs: frozenset[str]

    def init(self, tensors: Tensors, clients: Sequence[str]) -> State:
        """The state before the first round, for these global tensors and these clients."""
        ...

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        """One round: the new state, the new global tensors W_next, and the weight of each client's delta in it."""
        ...


class Difference(Mapping):
    """The tensors ``after - before`` in float64, each computed when it is asked for, so that no copy of a model is held.

    In float64 the difference of two float32 numbers of like size is exact, so that one client's W + (W_k - W) is W_k.
    """

    def __init__(self, after: Tensors, before: Tensors):
        self.after, self.before = after, before

    def __getitem__(self, name: str) -> np.ndarray:
        return self.after[name].astype(np.float64) - self.before[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.before)

    def __len__(self) -> int:
        return len(self.before)


def in_order(updates: Sequence[Update]) -> list[Update]:
    """The updates by client name: sums are then the same to the last bit in whatever order replies arrive."""
    return sorted(updates, key=lambda update: update.client)


def add_weighted(tensors: Tensors, updates: Sequence[Update], weights: Mapping[str, float]) -> dict[str, np.ndarray]:
    """W + sum_k weights[k] D_k, summed in float64 tensor by tensor and returned in each tensor's own type."""
    result = {}
    for name, tensor in tensors.items():
        total = tensor.astype(np.float64)
        for update in in_order(updates):
            total += weights[update.client] * update.delta[name]
        result[name] = total.astype(tensor.dtype)
    return result


def by_scans(updates: Sequence[Update]) -> dict[str, float]:
    """FedAvg's weights p_k = n_k / sum n, by client."""
    scans = sum(update.scans for update in updates)
    return {update.client: update.scans / scans for update in updates}


def weighted_delta(name: str, updates: Sequence[Update], weights: Mapping[str, float]) -> np.ndarray:
    """sum_k weights[k] D_k of the tensor ``name``, in float64."""
    first, *others = in_order(updates)
    total = weights[first.client] * np.asarray(first.delta[name], dtype=np.float64)
    for update in others:
        total = total + weights[update.client] * update.delta[name]
    return total


def is_statistic(name: str) -> bool:
    """Whether a tensor is a running statistic of a batch norm: measured, not trained, so no optimizer may extrapolate it."""
    return name.endswith(("running_mean", "running_var"))


def shares(values: np.ndarray) -> np.ndarray:
    """``values`` (K,) divided by their sum; equal shares where the sum is 0."""
    total = values.sum()
    return values / total if total > 0 else np.full(len(values), 1 / len(values))
