"""Nyul and Udupa's standardization: each scan's histogram is bent onto a standard one that was learnt from training scans.

Nyul & Udupa, Magnetic Resonance in Medicine 1999; Nyul, Udupa & Zhang, IEEE Transactions on Medical Imaging 2000. A scan is
known by its landmarks, the 1st, 10th, 20th ... 90th and 99th percentile of its brain. The standard scale is the mean of the
training scans' landmarks, each scan's first mapped linearly so that the outermost lie at ENDS. A scan is standardized by the
piecewise linear map that sends its landmarks to the scale, its outermost pieces going on beyond them.

A client's scale is eleven numbers, of which the two ends are the same everywhere; a scale that clients share is the mean
of theirs by scans, which is that of all their training scans together. No voxel and no scan's percentile is needed for it.
"""

from collections.abc import Sequence

import numpy as np

from fedbrain.imaging.intensity import encoder_zscore
from fedbrain.imaging.reading import ScanFailure

PERCENTILES = (1, *range(10, 100, 10), 99)
# Of the standard scale; the papers leave them open. Ours: brains have a 1st percentile of 0.09 to 0.25 of the 99th, so 0 stays near 0.
ENDS = (15.0, 100.0)


def landmarks(values: np.ndarray, mask: np.ndarray) -> list[float]:
    """The percentiles of ``values`` (X, Y, Z) within ``mask``, in the scanner's units.

    Raises ScanFailure where two of them coincide: no map could tell their voxels apart.
    """
    if not mask.any():
        raise ScanFailure("no voxels to normalize by: the brain is empty; check the brain mask")
    found = np.percentile(values[mask].astype(np.float64), PERCENTILES)
    if not (np.diff(found) > 0).all():
        raise ScanFailure("a tenth of the brain has one single intensity; check the brain mask and the scan")
    return found.tolist()


def mean_landmarks(scans: Sequence[Sequence[float]]) -> list[float]:
    """The standard scale of ``scans`` (N, 11), the landmarks of N scans. Raises ValueError for no scan."""
    found = np.asarray(scans, dtype=np.float64)
    if not found.size:
        raise ValueError("no scan to fit a standard scale to")
    share = (found - found[:, :1]) / (found[:, -1:] - found[:, :1])  # (N, 11), 0 to 1
    low, high = ENDS
    return (low + (high - low) * share.mean(axis=0)).tolist()


def shared_scale(scales: Sequence[Sequence[float]], scans: Sequence[int]) -> list[float]:
    """The mean of clients' ``scales`` (K, 11), weighted by their numbers of scans. Raises ValueError where no client has one."""
    if not sum(scans):
        raise ValueError("no client has a scan to fit a standard scale to")
    return np.average(np.asarray(scales, dtype=np.float64), axis=0, weights=scans).tolist()


def standardized(values: np.ndarray, found: Sequence[float], scale: Sequence[float]) -> np.ndarray:
    """``values`` (any shape) sent from a scan's landmarks ``found`` (11,) to ``scale`` (11,); float64, on the standard scale."""
    found, scale = np.asarray(found, dtype=np.float64), np.asarray(scale, dtype=np.float64)
    slopes = np.diff(scale) / np.diff(found)  # (10,)
    piece = np.clip(np.searchsorted(found, values, side="right") - 1, 0, len(slopes) - 1)
    return scale[piece] + slopes[piece] * (values - found[piece])


def normalized(values: np.ndarray, mask: np.ndarray, found: Sequence[float], scale: Sequence[float]) -> np.ndarray:
    """The brain on the standard scale, then the encoder's z-score, as float32 of the shape of ``values`` (X, Y, Z).

    The background is 0 on the standard scale, and no brain voxel is darker. The z-score is the last step (ours) because encoders
    were trained on its scale; it is linear, so what the pieces have bent stays bent.
    """
    brain = np.zeros(values.shape)
    brain[mask] = np.maximum(standardized(values[mask], found, scale), 0)
    return encoder_zscore(brain, mask)
