"""What an aggregation rule is: pure functions over a small immutable state, and declarations of what a client does.

A rule is a frozen dataclass of its options, a subclass of :class:`Rule`. At the least it has

    apply(state, updates)    one round: (new state, new global tensors, contribution weight of each client)

and where it wants more, it says so: which scalars the clients must report (``needs``), which tensors stay with a client
(``private``), are never trained (``frozen``) or rest in a round (``resting``), what else travels (``down``, ``beside``), how a
client trains (``local``). The round loop and the client's app do the rest.

The shape follows fedjax's algorithms (state goes in, state comes out). A rule knows nothing of Flower, of messages or of
files; everything that it remembers is in its state, so a checkpoint of the state is a checkpoint of the rule.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from fedbrain.errors import StudyError
from fedbrain.federated.kinds import ADDED

if TYPE_CHECKING:
    from fedbrain.federated.local import LocalRound

Tensors = Mapping[str, np.ndarray]

BLOCK = 1 << 16  # elements: half a megabyte in float64, which stays in a processor's cache


@dataclass(frozen=True)
class Update:
    """What the server holds of one client after its local training of one round.

    ``delta`` is D_k = W_k - W for every tensor that travels; ``scans`` is n_k, the client's number of training scans;
    ``scalars`` are the values that the rule asked for through ``needs``. A scalar that the client cannot compute (no
    validation scans) is absent. ``beside`` holds the arrays that came beside the model, where the rule sent some.
    """

    client: str
    delta: Tensors
    scans: int
    scalars: Mapping[str, float] = field(default_factory=dict)
    beside: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """A rule's state: the rounds done, the global tensors, and what the rule remembers.

    ``memory`` holds plain JSON values, ``moments`` arrays (for server optimizers); both can be written to disk as they are.
    """

    round: int
    tensors: Tensors
    memory: Mapping = field(default_factory=dict)
    moments: Tensors = field(default_factory=dict)


class Gathering(Protocol):
    """The updates of one round on their way into a rule."""

    def add(self, update: Update) -> None:
        """Takes one update; they come in the order of the clients' names."""
        ...

    def finish(self) -> tuple[State, Tensors, dict[str, float]]:
        """What ``Rule.apply`` gives for the updates that came."""
        ...


@dataclass(frozen=True)
class Rule:
    """The base of all aggregation rules: FedAvg's client, everything shared. A subclass changes what it wants otherwise.

    Tensors are named by *kinds* or patterns. Kinds are ``head``, ``norm`` (scales, shifts and statistics of normalization
    layers), ``lora_A``, ``lora_B``, and ``local`` (the second pair of a ``dual_lora``); all else is a pattern of tensor names
    as in a shell (``head.classify.*``).

    Args:
        private: what each client trains for itself and keeps; never sent.
    """

    needs: ClassVar[frozenset[str]] = frozenset()  # the scalars that every client must report, by name
    requires: ClassVar[tuple[str, ...]] = ()  # kinds without which the rule makes no sense
    frozen: ClassVar[tuple[str, ...]] = ()  # kinds that nobody trains, and that never travel
    merged: ClassVar[tuple[str, ...]] = ()  # names of weights that the server alone changes
    own_model: ClassVar[str | None] = None  # whole, of each client: trained in "rounds", or at the "end"

    private: Sequence[str] = field(default=(), kw_only=True)

    @property
    def personalised(self) -> bool:
        """Whether clients predict with tensors of their own."""
        return bool(self.private) or self.own_model is not None

    @property
    def has_global_model(self) -> bool:
        """Whether the shared tensors are a model without the private ones: they are all, or the others only add to them."""
        return set(self.private) <= set(ADDED)

    def fitted(self, layers: Mapping[str, "AdaptedLayer"]) -> "Rule":
        """The rule for a model with these adapted layers, by the name of A. Most rules do not care."""
        return self

    def init(self, tensors: Tensors, clients: Sequence[str]) -> State:
        """The state before the first round, for these global tensors and these clients."""
        return State(0, tensors)

    def check_round(self, clients: int) -> None:
        """Raises StudyError where a round of so many clients is too small for the rule."""

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        """One round: the new state, the new global tensors W_next, and the weight of each client's delta in it."""
        raise NotImplementedError

    def gather(self, state: State, expected: Mapping[str, int]) -> Gathering:
        """Takes the updates of a round one by one; ``expected`` are the clients asked and their scans.

        Here all of them are held until the last has come, which is what a rule wants that compares clients. One that adds up
        may keep a running sum instead (fedbrain.federated.aggregation.averages).
        """
        return _AllUpdates(self, state)

    def resting(self, round: int) -> tuple[str, ...]:
        """Kinds of shared tensors that are neither trained nor sent up in this round (rounds from 1)."""
        return ()

    def down(self, state: State, client: str) -> Tensors:
        """What goes down to a client: the global tensors, or some rows of theirs (the client fills up with zeros)."""
        return state.tensors

    def beside(self, state: State) -> Tensors:
        """Arrays that go down beside the model; a client then sends arrays of the same names and shapes back."""
        return {}

    def factors(self, state: State) -> Tensors:
        """The last change of the ``merged`` weights, as pairs of factors by the adapters' names, for those who saw the ones before."""
        return {}

    def local(self) -> "LocalRound":
        """How a client trains in a round."""
        from fedbrain.federated.local import LocalRound

        return LocalRound()


class _AllUpdates:
    def __init__(self, rule: Rule, state: State):
        self._rule, self._state, self._updates = rule, state, []

    def add(self, update: Update) -> None:
        self._updates.append(update)

    def finish(self) -> tuple[State, Tensors, dict[str, float]]:
        return self._rule.apply(self._state, self._updates)


@dataclass(frozen=True)
class AdaptedLayer:
    """Where the product of a pair of low-rank factors is added: rows of a frozen weight (out, in), times a scale."""

    b: str  # the name of B
    weight: str
    rows: tuple[int, int]  # of the weight, from, to
    scale: float  # alpha / r


class Difference(Mapping):
    """The tensors ``after - before`` in float64, each computed when it is asked for, so that no copy of a model is held.

    In float64 the difference of two float32 numbers of like size is exact, so that one client's W + (W_k - W) is W_k.
    """

    def __init__(self, after: Tensors, before: Tensors):
        self.after, self.before = after, before

    def __getitem__(self, name: str) -> np.ndarray:
        difference = self.after[name].astype(np.float64)
        difference -= self.before[name]
        return difference

    def __iter__(self) -> Iterator[str]:
        return iter(self.before)

    def __len__(self) -> int:
        return len(self.before)


def blocks(size: int) -> Iterator[slice]:
    """Slices that cover ``size`` elements, to compute with large arrays without others of their size beside them."""
    return (slice(start, start + BLOCK) for start in range(0, size, BLOCK))


def add_scaled(total: np.ndarray, weight: float, delta: Tensors, name: str) -> None:
    """``total += weight * delta[name]`` in float64, to the same bits; without a copy of the tensor where it is a Difference."""
    if not isinstance(delta, Difference):
        total += weight * delta[name]
        return
    after, before, sums = delta.after[name].reshape(-1), delta.before[name].reshape(-1), total.reshape(-1, copy=False)
    for block in blocks(sums.size):
        part = after[block].astype(np.float64)
        part -= before[block]
        part *= weight
        sums[block] += part


def filled_up(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``array``, filled up with zeros to ``shape``: what an adapter of lower rank is in one of higher rank."""
    if array.shape == tuple(shape):
        return array
    result = np.zeros(shape, array.dtype)
    result[tuple(map(slice, array.shape))] = array
    return result


def merge(weight: np.ndarray, rows: tuple[int, int], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A copy of ``weight`` (out, in), of which ``rows`` (from, to) have had B A added; in its own type.

    Server and clients both add the factors as they travel, by this function, so that both hold the same weights.
    """
    result = np.array(weight)
    place = slice(*rows)
    result[place] = (weight[place].astype(np.float64) + b.astype(np.float64) @ a).astype(weight.dtype)
    return result


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


def always_private(rule: Rule, *entries: str) -> None:
    """Puts what defines ``rule`` before whatever else its ``private`` names; for ``__post_init__``."""
    if isinstance(rule.private, list | tuple):  # else the config's check says that it must be
        object.__setattr__(rule, "private", tuple(dict.fromkeys((*entries, *rule.private))))


def check_strength(rule: str, name: str, value: float) -> None:
    """Raises StudyError for a factor of a penalty that is no number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise StudyError(f"aggregation {rule}: {name} must be a number from 0, it is {value!r}")


def is_statistic(name: str) -> bool:
    """Whether a tensor is a running statistic of a batch norm: measured, not trained, so no optimizer may extrapolate it."""
    return name.endswith(("running_mean", "running_var"))


def shares(values: np.ndarray) -> np.ndarray:
    """``values`` (K,) divided by their sum; equal shares where the sum is 0."""
    total = values.sum()
    return values / total if total > 0 else np.full(len(values), 1 / len(values))
