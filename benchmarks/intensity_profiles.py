"""Intensity profiles of all voxels of many volumes, against ``scipy.stats.gaussian_kde`` on the same voxels.

    OMP_NUM_THREADS=1 python benchmarks/intensity_profiles.py [--volumes 1000] [--sample 20000]

Volumes of 128 x 128 x 128 voxels with the mask of an ellipsoid as large as a brain; each is drawn anew, with means and spreads
of its own, and the drawing is not counted. Ours twice: ``intensity_density``, arrays in, and the workflow's way, a histogram per
scan, their sum, its density. The latter counts while a scan is preprocessed, so that its figure has to add up only; the target of
speed is for the former. scipy's estimate takes time in proportion to voxels times points, so it is measured on some voxels
and scaled up; both are then compared on that sample. Processor seconds. Targets: 1,000 times faster, below 1 GiB, within 1 % of
the peak.
"""

import argparse
import sys
import time

import numpy as np
from scipy.stats import gaussian_kde

from fedbrain.federated.accounting import PeakMemory
from fedbrain.figures.intensity import BANDWIDTH_Z, intensity_density, smoothed_density
from fedbrain.imaging.histogram import merge, scan_histogram

GRID = np.linspace(-4, 4, 800)  # z; as many points as the figure draws
WIDTH = 0.01  # z, as for a z-score in the workflow
SPEED, MEMORY, DIFFERENCE = 1000, 2**30, 0.01


def ellipsoid() -> np.ndarray:
    """(128, 128, 128) of bool, 474,599 voxels, which at 1.5 mm are 1.6 l."""
    x, y, z = np.ogrid[-64:64, -64:64, -64:64]
    return (x / 46) ** 2 + (y / 56) ** 2 + (z / 44) ** 2 < 1


class Drawn:
    """Volumes one after the other; ``seconds`` is what drawing them took."""

    def __init__(self, count: int, mask: np.ndarray):
        self.count, self.mask, self.seconds = count, mask, 0.0
        rng = np.random.default_rng(0)
        grey = rng.random(mask.shape) < 0.5
        self._tissue = np.where(grey, rng.normal(-0.8, 0.4, mask.shape), rng.normal(0.9, 0.3, mask.shape))
        self._tissue = self._tissue.astype(np.float32)

    def __iter__(self):
        rng = np.random.default_rng(1)
        for _ in range(self.count):
            start = time.process_time()
            volume = np.float32(rng.normal(1, 0.05)) * self._tissue + np.float32(rng.normal(0, 0.1))
            self.seconds += time.process_time() - start
            yield volume, self.mask


def by_density(volumes) -> np.ndarray:
    return intensity_density(volumes, GRID)


def by_histograms(volumes) -> np.ndarray:
    table = merge(scan_histogram(volume[mask], WIDTH) for volume, mask in volumes)
    start, counts = table["start"].to_numpy(float), table["count"].to_numpy(float)
    return smoothed_density(start, start + WIDTH, counts / counts.sum(), GRID, BANDWIDTH_Z)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=20_000)
    arguments = parser.parse_args()
    mask, missed = ellipsoid(), False

    sample = next(iter(Drawn(1, mask)))[0][mask]
    sample = np.random.default_rng(2).choice(sample, arguments.sample, replace=False)
    start = time.process_time()
    expected = gaussian_kde(sample, bw_method=BANDWIDTH_Z / sample.std(ddof=1))(GRID)
    scaled = (time.process_time() - start) * mask.sum() * arguments.volumes / arguments.sample
    print("way\tseconds\tscipy_seconds_scaled_up\tratio\tpeak_MiB\tlargest_difference_of_peak")
    for way in (by_density, by_histograms):
        volumes = Drawn(arguments.volumes, mask)
        with PeakMemory("cpu") as peak:
            start = time.process_time()
            way(volumes)
            seconds = time.process_time() - start - volumes.seconds
        difference = np.abs(way([(sample, np.ones(sample.shape, bool))]) - expected).max() / expected.max()
        ratio = scaled / seconds
        print(f"{way.__name__}\t{seconds:.2f}\t{scaled:.0f}\t{ratio:.0f}\t{peak.bytes / 2**20:.0f}\t{difference:.2e}")
        missed |= peak.bytes > MEMORY or difference > DIFFERENCE or (way is by_density and ratio < SPEED)
    print(
        f"targets {'missed' if missed else 'met'}: {SPEED} times, {MEMORY / 2**20:.0f} MiB, {DIFFERENCE:.0%} of the peak"
    )
    return missed


if __name__ == "__main__":
    sys.exit(main())
