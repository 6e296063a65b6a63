"""Robust rules: a global model that a few clients with wrong updates cannot pull far away.

Every client counts the same, whatever its number of scans: a client could claim any number.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018 (median, trimmed mean);
Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017 (Krum, Multi-Krum).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.rule import Rule, State, Tensors, Update, add_weighted, in_order

BLOCK = 1 << 16  # coordinates at once


@dataclass(frozen=True)
class Median(Rule):
    """Of every coordinate the median over the clients; of an even number the mean of the middle two.

    A client's weight is its mean factor over all coordinates: where its value is the median it counts 1, in the mean of two
    1/2, else 0; clients with the same value share its factor equally. The weights sum to 1.
    """

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        return _apply_trimmed(state, updates, (len(updates) - 1) // 2)


@dataclass(frozen=True)
class TrimmedMean(Rule):
    """Of every coordinate the mean over the clients without the lowest and the highest values. Weights as of the median.

    Args:
        trim: the share of clients that is left out at *each* end, in (0, 0.5): floor(trim K) of K clients. Ours: at least one
            if there are three or more, since a study has few clients and an untrimmed mean is SimpleAvg.
    """

    trim: float = 0.2

    def __post_init__(self):
        if isinstance(self.trim, bool) or not isinstance(self.trim, int | float) or not 0 < self.trim < 0.5:
            raise StudyError(f"aggregation trimmed_mean: trim must be a number between 0 and 0.5, it is {self.trim!r}")

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        clients = len(updates)
        # 0.29 * 100 is 28.999999999999996; with more than two clients one at each end always leaves some.
        cut = max(int(self.trim * clients + 1e-9), int(clients > 2))
        return _apply_trimmed(state, updates, cut)


@dataclass(frozen=True)
class Krum(Rule):
    """The update of the one client whose nearest neighbours are nearest: W_next = W_k.

    The score of a client is the sum of its squared distances to its K - f - 2 nearest others, over all tensors as one vector;
    the lowest wins, ties go to the first name. Weight 1 for the chosen client, 0 for the others.

    Args:
        byzantine: f, how many clients may be arbitrarily wrong. The paper's guarantee needs K >= 2f + 3, which is asked for.
            None (ours): the most that the round's number of clients allows.

    Raises StudyError from ``init`` and ``apply`` where there are fewer clients than that; a single client alone is taken.
    """

    byzantine: int | None = None

    def __post_init__(self):
        if self.byzantine is not None and (type(self.byzantine) is not int or self.byzantine < 0):
            raise StudyError(
                f"aggregation {self._name()}: byzantine must be a whole number from 0 on, it is {self.byzantine!r}"
            )

    def init(self, tensors: Tensors, clients: Sequence[str]) -> State:
        self.check_round(len(clients))
        return State(0, tensors)

    def check_round(self, clients: int) -> None:
        self._wrong_ones(clients)

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        updates = in_order(updates)
        wrong = self._wrong_ones(len(updates))
        scores = krum_scores(squared_distances(updates), wrong)
        chosen = np.argsort(scores, kind="stable")[: self._count(len(updates), wrong)]
        weights = {update.client: float(k in chosen) / len(chosen) for k, update in enumerate(updates)}
        tensors = add_weighted(state.tensors, [updates[k] for k in chosen], weights)
        return replace(state, round=state.round + 1, tensors=tensors), tensors, weights

    def _wrong_ones(self, clients: int) -> int:
        """f for this number of clients."""
        wrong = max(0, (clients - 3) // 2) if self.byzantine is None else self.byzantine
        if clients < 2 * wrong + 3 and (clients > 1 or wrong):
            raise StudyError(
                f"aggregation {self._name()}: with byzantine {wrong} it needs {2 * wrong + 3} clients, there are {clients};"
                " lower byzantine or choose median"
            )
        return wrong

    def _count(self, clients: int, wrong: int) -> int:
        return 1

    def _name(self) -> str:
        return "krum"


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the updates with the lowest Krum scores, each with weight 1 / select.

    Args:
        byzantine: as of Krum.
        select: how many; None (ours): K - f, all but those that may be wrong.
    """

    select: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.select is not None and (type(self.select) is not int or self.select < 1):
            raise StudyError(f"aggregation multi_krum: select must be a whole number from 1 on, it is {self.select!r}")

    def _count(self, clients: int, wrong: int) -> int:
        return clients - wrong if self.select is None else min(self.select, clients)

    def _name(self) -> str:
        return "multi_krum"


def trimmed_mean(values: np.ndarray, cut: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of ``values`` (K, P) over K without the ``cut`` lowest and highest of each column, and each row's part in it.

    Returns the means (P,), and (K,) the sum over columns of the factor that the row's value has in the mean: 1 / (K - 2 cut)
    where it is kept, 0 where it is cut; equal values share the places that they take together. Both are those of the rows
    whatever their order.
    """
    clients = len(values)
    ordered = np.sort(values, axis=0)
    kept = ordered[cut : clients - cut]
    parts = np.empty(clients)
    for k, own in enumerate(values):
        below, to = (ordered < own).sum(axis=0), (ordered <= own).sum(axis=0)  # places below, to - 1 hold this value
        places = np.minimum(to, clients - cut) - np.maximum(below, cut)
        parts[k] = (np.maximum(places, 0) / (to - below)).sum() / len(kept)
    return kept.mean(axis=0), parts


def squared_distances(updates: Sequence[Update]) -> np.ndarray:
    """||D_i - D_j||^2 (K, K) over all tensors as one vector, in float64; equal updates are exactly 0 apart."""
    distances = np.zeros((len(updates), len(updates)))
    for name in updates[0].delta:
        deltas = [np.asarray(update.delta[name], dtype=np.float64).ravel() for update in updates]  # K of (P,)
        for i, one in enumerate(deltas):
            for j, other in enumerate(deltas[:i]):
                apart = one - other
                distances[i, j] += apart @ apart
    return distances + distances.T


def krum_scores(distances: np.ndarray, wrong: int) -> np.ndarray:
    """The sum of each row's K - ``wrong`` - 2 smallest squared distances (K, K) to the others: (K,)."""
    clients = len(distances)
    others = np.sort(distances[~np.eye(clients, dtype=bool)].reshape(clients, clients - 1), axis=1)
    return others[:, : max(clients - wrong - 2, 0)].sum(axis=1)


def _apply_trimmed(state: State, updates: Sequence[Update], cut: int) -> tuple[State, Tensors, dict[str, float]]:
    updates = in_order(updates)
    result, parts, coordinates = {}, np.zeros(len(updates)), 0
    for name, tensor in state.tensors.items():
        deltas = np.stack([np.asarray(update.delta[name], dtype=np.float64).ravel() for update in updates])  # (K, P)
        step = np.empty(tensor.size)
        for start in range(0, tensor.size, BLOCK):
            block = slice(start, start + BLOCK)
            step[block], block_parts = trimmed_mean(deltas[:, block], cut)
            parts += block_parts
        coordinates += tensor.size
        result[name] = np.asarray(tensor + step.reshape(tensor.shape), dtype=tensor.dtype)
    weights = {update.client: float(part / coordinates) for update, part in zip(updates, parts)}
    return replace(state, round=state.round + 1, tensors=result), result, weights
