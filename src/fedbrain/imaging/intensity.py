"""Intensity normalization of a brain-extracted volume.

Each function takes ``values`` (X, Y, Z) float32, bias-corrected and zero outside the brain, and ``mask`` (X, Y, Z)
bool, and returns float32 of the same shape. A further method is one function here and one line in the registry.
"""

import numpy as np

from fedbrain.imaging.reading import ScanFailure


def encoder_zscore(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean and deviation (n - 1) of all voxels > 0, applied to all voxels: the background ends at -mean / deviation.

    The convention that the encoder SAM-Med3D was trained with (its TorchIO ``ZNormalization`` with ``x > 0`` as the
    mask). The result must not be normalized a second time: x > 0 would then be half the brain.
    """
    mean, deviation = _moments(values[values > 0])
    return ((values - mean) / deviation).astype(np.float32)


def zscore(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean and deviation (n - 1) within the mask; zero outside it."""
    mean, deviation = _moments(values[mask])
    return np.where(mask, (values - mean) / deviation, 0).astype(np.float32)


def minmax(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The 0.1st to the 99.9th percentile within the mask to 0...1, clipped; zero outside it.

    Percentiles instead of the extremes are our choice: one bright vessel would otherwise set the scale.
    """
    low, high = np.percentile(_enough(values[mask]), (0.1, 99.9))
    if not high > low:
        raise ScanFailure("the brain has one single intensity; check the brain mask and the scan")
    return np.where(mask, np.clip((values - low) / (high - low), 0, 1), 0).astype(np.float32)


def unchanged(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """As it is: bias-corrected, in the scanner's arbitrary units."""
    return values.astype(np.float32)


def _moments(values: np.ndarray) -> tuple[float, float]:
    values = _enough(values).astype(np.float64)  # a float32 sum over a million voxels loses digits
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    if not deviation > 0:
        raise ScanFailure("the brain has one single intensity; check the brain mask and the scan")
    return mean, deviation


def _enough(values: np.ndarray) -> np.ndarray:
    if values.size < 2:
        raise ScanFailure("no voxels to normalize by: the brain is empty or not positive; check the brain mask")
    return values
