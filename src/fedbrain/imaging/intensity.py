"""Intensity normalization of a brain-extracted T1w volume by what the scan itself shows.

Each function takes ``values`` (X, Y, Z) float32, bias-corrected and zero outside the brain, and ``mask`` (X, Y, Z)
bool, and returns float32 of the same shape. A further method is one function here and one line in the registry. A
method that is fitted on training scans (``nyul``) has a module and a stage of its own.

White matter is found in the histogram of the brain, where it is the last peak of a T1w image. Peaks and classes are found on
fine histograms: the same scan gives the same numbers, in a tenth of a second, whatever its scale.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from fedbrain.imaging.reading import ScanFailure

# Of the histogram after normalization, in a method's units, so that the profiles of all scans share their bins; a method that is
# not here has bins by each scan's range.
BIN_WIDTHS = {"encoder": 0.01, "zscore": 0.01, "minmax": 0.002, "whitestripe": 0.1, "kde": 0.002, "fcm": 0.002}
STRIPE = 0.05  # of all brain voxels, on either side of the white matter peak (Shinohara 2014)
PEAK_BANDWIDTH = 0.02  # of the range from the 0.5th to the 99.5th percentile; ours
LOWEST_PEAK = 0.2  # of the highest; lower ones are vessels, fat or noise (as in the R package WhiteStripe)
PEAK_BINS, CLASS_BINS = 1024, 4096
CLASSES = 3  # cerebrospinal fluid, grey and white matter


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


def whitestripe(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(x - m) / s, m and s (n - 1) over the white stripe; applied to all voxels, so the background is at -m / s.

    The stripe holds the brain voxels whose share of darker ones lies within 0.05 of that of the white matter peak
    (Shinohara et al., NeuroImage: Clinical 2014). White matter comes to 0. The paper smooths its histogram by a penalized spline,
    this by a Gaussian (``white_matter_peak``).
    """
    brain = _enough(values[mask])
    rank = float(np.mean(brain < white_matter_peak(brain)))
    low, high = np.quantile(brain, (max(rank - STRIPE, 0), min(rank + STRIPE, 1)))
    mean, deviation = _moments(brain[(brain >= low) & (brain <= high)])
    return ((values - mean) / deviation).astype(np.float32)


def kde(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """x / p, p the white matter peak of the kernel density estimate; the background stays 0, white matter comes to 1.

    Reinhold et al., SPIE Medical Imaging 2019 (arXiv:1812.04652), with c = 1; the bandwidth is ours (``white_matter_peak``).
    """
    return (values / white_matter_peak(_enough(values[mask]))).astype(np.float32)


def fcm(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """x / m, m the mean over white matter by fuzzy c-means; the background stays 0, white matter comes to 1.

    Reinhold et al., SPIE Medical Imaging 2019 (arXiv:1812.04652), with c = 1: three classes over the brain, m the mean of the
    voxels whose membership of the brightest class is the largest, which are those nearest to its centre.
    """
    brain = _enough(values[mask]).astype(np.float64)
    _, grey, white = fuzzy_centres(brain)
    return (values / brain[brain > (grey + white) / 2].mean()).astype(np.float32)


def unchanged(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """As it is: bias-corrected, in the scanner's arbitrary units."""
    return values.astype(np.float32)


def white_matter_peak(brain: np.ndarray) -> float:
    """The last peak of the density of ``brain`` (N,), the voxels of a T1w brain, in their units.

    The density is a histogram of 1,024 bins, smoothed by a Gaussian of 2 % of the range from the 0.5th to the 99.5th
    percentile (ours); peaks under a fifth of the highest do not count. Raises ScanFailure where the last peak is darker than
    half of the brain: grey and white matter are then not told apart.
    """
    low, high = np.percentile(brain, (0.5, 99.5))
    if not high > low:
        raise ScanFailure("the brain has one single intensity; check the brain mask and the scan")
    span = high - low
    counts, edges = np.histogram(brain, PEAK_BINS, (low - 0.25 * span, high + 0.25 * span))
    density = gaussian_filter1d(counts.astype(float), PEAK_BANDWIDTH * span / (edges[1] - edges[0]), mode="constant")
    is_peak = (density[1:-1] > density[:-2]) & (density[1:-1] >= density[2:])
    peaks = 1 + np.flatnonzero(is_peak & (density[1:-1] >= LOWEST_PEAK * density.max()))
    peak = float((edges[peaks[-1]] + edges[peaks[-1] + 1]) / 2) if len(peaks) else float("-inf")
    if peak < np.median(brain):
        raise ScanFailure(
            "no peak of white matter: the histogram's last peak is darker than half of the brain; look at the scan"
        )
    return peak


def fuzzy_centres(brain: np.ndarray, *, tolerance: float = 1e-6, iterations: int = 500) -> np.ndarray:
    """Centres (3,), increasing, of fuzzy c-means of ``brain`` (N,) with fuzzifier 2 (Bezdek 1981).

    Memberships are u_k = d_k^-2 / sum_j d_j^-2 and centres the means weighted by u^2, in turn, from the 1/6, 3/6 and 5/6 quantiles on
    until no centre moves by more than ``tolerance`` of the range. On a histogram of 4,096 bins between the 0.1st and the 99.9th
    percentile, beyond which voxels count at the end of the range. Raises ScanFailure where there are no three classes.
    """
    low, high = np.percentile(brain, (0.1, 99.9))
    if not high > low:
        raise ScanFailure("the brain has one single intensity; check the brain mask and the scan")
    counts, edges = np.histogram(np.clip(brain, low, high), CLASS_BINS, (low, high))
    x = (edges[1:] + edges[:-1]) / 2  # (bins,)
    centres = np.quantile(brain, (np.arange(CLASSES) + 0.5) / CLASSES).astype(np.float64)
    for _ in range(iterations):
        closeness = 1 / np.maximum((x - centres[:, None]) ** 2, 1e-12 * (high - low) ** 2)  # (classes, bins)
        weights = counts * (closeness / closeness.sum(0)) ** 2
        before, centres = centres, weights @ x / weights.sum(1)
        if np.abs(centres - before).max() <= tolerance * (high - low):
            break
    centres = np.sort(centres)
    if not (np.diff(centres) > 1e-3 * (high - low)).all():
        raise ScanFailure("fluid, grey and white matter are not told apart by intensity; look at the scan")
    return centres


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
