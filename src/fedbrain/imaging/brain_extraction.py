"""What brain extractors have in common; the extractors themselves are in ``fedbrain.imaging.extractors``.

An extractor is a function ``(scan, mask, *, device, options) -> Extraction``:

- ``scan``: a Scan; its values are left as they are. The array's axes lie near right, anterior, superior, by its affine, too,
  where a head that lies turned is tried in another orientation: an extractor may go by either.
- ``mask``: the scan's mask from the manifest as a Scan, or None.
- ``device``: "cpu" or "cuda".
- ``options``: ``weights`` (path) and ``sha256``, for an extractor whose networks are a file that the user puts in place.

It raises ScanFailure where the scan is at fault, StudyError where the weights are. A further one is a module, a line in
the registry and a card in ``fedbrain.imaging.extractor_cards``.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from fedbrain.errors import StudyError
from fedbrain.imaging.extractor_cards import CARDS
from fedbrain.imaging.reading import Scan, ScanFailure
from fedbrain.provenance import sha256_of

SMALLEST_BRAIN_ML = 100  # less is no brain; smaller doubts are left to quality control


class Extraction(NamedTuple):
    """A brain mask, and what the extractor knows about it."""

    brain: np.ndarray  # (X, Y, Z) bool on the scan's own grid
    facts: dict  # plain numbers; they go into the scan's record, under the step's parameters


def cleaned(marked: np.ndarray, scan: Scan, who: str) -> Extraction:
    """The largest component of what a network marked, its holes filled, with the facts of ``cleaning_facts``.

    Raises ScanFailure where nothing, or less than a brain, is left.
    """
    brain = ndimage.binary_fill_holes(largest_component(marked))
    return Extraction(of_sane_size(brain, scan, who), cleaning_facts(marked, brain, scan))


def cleaning_facts(marked: np.ndarray, brain: np.ndarray, scan: Scan) -> dict:
    """How much a network's mask had to be cleaned; much says that the network was in doubt.

    ``components`` of what it marked, ``removed_ml`` that were taken away, ``filled_ml`` that were filled in.
    """
    millilitres = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    return {
        "components": components(marked),
        "removed_ml": round(float(np.count_nonzero(marked & ~brain) * millilitres), 3),
        "filled_ml": round(float(np.count_nonzero(brain & ~marked) * millilitres), 3),
    }


def components(mask: np.ndarray) -> int:
    """How many parts a mask has; voxels that share a face belong together."""
    return int(ndimage.label(mask)[1])


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest part of a mask; voxels that share a face belong together."""
    labels, count = ndimage.label(mask)
    return mask.astype(bool) if count < 2 else labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def of_sane_size(brain: np.ndarray, scan: Scan, who: str) -> np.ndarray:
    """``brain``, unless it is too small to be one. Raises ScanFailure."""
    millilitres = np.count_nonzero(brain) * abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    if millilitres < SMALLEST_BRAIN_ML:
        raise ScanFailure(
            f"{who} a brain of {millilitres:.0f} ml only; look at the scan: is it a T1w head, whole and upright?"
        )
    return brain


@cache
def checked_weights(extractor: str, path: str, sha256: str) -> Path:
    """The file with an extractor's weights, if it is the one that the recipe means; hashed once per process.

    Raises StudyError where it is missing or another file.
    """
    card = CARDS[extractor]
    if not Path(path).is_file():
        raise StudyError(card.missing(path))
    card.check(path, sha256_of(path), sha256)
    return Path(path)
