"""Bulyan: of the clients that Multi-Krum chooses, of every coordinate the mean of the values nearest their median.

El Mhamdi, Guerraoui and Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018. A client near the others as a
whole may be far away in a single coordinate; the second step takes that from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.robust import BLOCK, Krum, krum_scores, squared_distances
from fedbrain.federated.aggregation.rule import State, Tensors, Update, in_order


@dataclass(frozen=True)
class Bulyan(Krum):
    """K - 2f clients by their Krum scores; of every coordinate the mean of the K - 4f values of theirs nearest the median.

    The scores are computed once, as in Flower's; the paper chooses one client after the other and computes them anew among those left. A
    client's weight is its mean factor over all coordinates. Ties go to the first name.

    Args:
        byzantine: f, how many clients may be arbitrarily wrong; the paper asks for K >= 4f + 3. None (ours): the most that the round's
            number of clients allows. With f = 0, that is fewer than seven clients, it is SimpleAvg.

    Raises StudyError from ``init`` and ``apply`` where there are fewer clients than that; a single client alone is taken.
    """

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        updates = in_order(updates)
        wrong = self._wrong_ones(len(updates))
        scores = krum_scores(squared_distances(updates), wrong)
        chosen = sorted(np.argsort(scores, kind="stable")[: len(updates) - 2 * wrong])
        nearest = len(updates) - 4 * wrong
        parts, tensors = np.zeros(len(chosen)), {}
        for name, tensor in state.tensors.items():
            deltas = np.stack([np.asarray(updates[k].delta[name], dtype=np.float64).ravel() for k in chosen])  # (k, P)
            step = np.empty(tensor.size)
            for start in range(0, tensor.size, BLOCK):
                block = slice(start, start + BLOCK)
                step[block], block_parts = mean_near_median(deltas[:, block], nearest)
                parts += block_parts
            tensors[name] = np.asarray(tensor + step.reshape(tensor.shape), dtype=tensor.dtype)
        coordinates = sum(tensor.size for tensor in state.tensors.values())
        weights = dict.fromkeys((update.client for update in updates), 0.0)
        weights |= {updates[k].client: float(part / coordinates) for k, part in zip(chosen, parts)}
        return replace(state, round=state.round + 1, tensors=tensors), tensors, weights

    def _wrong_ones(self, clients: int) -> int:
        wrong = max(0, (clients - 3) // 4) if self.byzantine is None else self.byzantine
        if clients < 4 * wrong + 3 and (clients > 1 or wrong):
            raise StudyError(
                f"aggregation bulyan: with byzantine {wrong} it needs {4 * wrong + 3} clients, there are {clients};"
                " lower byzantine or choose median"
            )
        return wrong

    def _name(self) -> str:
        return "bulyan"


def mean_near_median(values: np.ndarray, nearest: int) -> tuple[np.ndarray, np.ndarray]:
    """Of ``values`` (K, P) the mean of the ``nearest`` of each column nearest its median (P,), and each row's part in it (K,)."""
    order = np.argsort(np.abs(values - np.median(values, axis=0)), axis=0, kind="stable")[:nearest]
    parts = np.bincount(order.ravel(), minlength=len(values)) / nearest
    return np.take_along_axis(values, order, axis=0).mean(axis=0), parts
