"""Histograms that add up exactly over scans, shards and clients.

Bins are half-open intervals [k width, (k + 1) width) with whole k, so two histograms of one width share their bins.
Where no width is given it is a power of two; a finer histogram of such widths is brought to a coarser one without any
error, since each coarse bin is a whole number of fine bins. So the merged counts are those of all values together,
and no voxel travels.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from fedbrain.tables import HISTOGRAM

COLUMNS = {"start": "Float64", "width": "Float64", "count": "Int64"}
FEWEST_BINS = 512  # over the range of one scan; at most twice as many
FINEST = 2.0**-30  # no width of ours is smaller, so that bin numbers fit in 64 bits


def scan_histogram(values: np.ndarray, width: float | None = None) -> pd.DataFrame:
    """Counts of ``values`` (any shape) in bins of ``width``; empty bins are left out.

    Without a width it is the power of two that spreads the values over 512 to 1,024 bins.
    Returns columns start, width, count. No value gives no row.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    if not values.size:
        return from_bins(np.array([], dtype=np.int64), np.array([], dtype=np.int64), width or 1.0)
    if width is None:
        spread = float(values.max() - values.min())
        width = max(FINEST, 2.0 ** math.floor(math.log2(spread / FEWEST_BINS))) if spread > 0 else FINEST
    bins, counts = np.unique(np.floor(values / width).astype(np.int64), return_counts=True)
    return from_bins(bins, counts, width)


def merge(histograms: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The sum of several histograms, in the coarsest of their widths. Raises ValueError where widths do not nest."""
    filled = [histogram for histogram in histograms if len(histogram)]
    if not filled:
        return scan_histogram(np.array([]))
    width = max(float(histogram["width"].max()) for histogram in filled)
    bins, counts = [], []
    for histogram in filled:
        own = histogram["width"].to_numpy(np.float64)
        factor = np.rint(width / own).astype(np.int64)
        if not np.allclose(factor * own, width, rtol=1e-9, atol=0):
            raise ValueError(f"bins of width {own.min():g} do not nest in bins of width {width:g}")
        fine = np.rint(histogram["start"].to_numpy(np.float64) / own).astype(np.int64)
        bins.append(fine // factor)
        counts.append(histogram["count"].to_numpy(np.int64))
    shared, position = np.unique(np.concatenate(bins), return_inverse=True)
    total = np.zeros(len(shared), dtype=np.int64)
    np.add.at(total, position, np.concatenate(counts))
    return from_bins(shared, total, width)


def merge_stages(histograms: Mapping[str, Iterable[pd.DataFrame]]) -> pd.DataFrame:
    """The HISTOGRAM table of several histograms per stage."""
    merged = [merge(parts).assign(stage=stage) for stage, parts in histograms.items()]
    return pd.concat(merged, ignore_index=True)[list(HISTOGRAM)].astype(HISTOGRAM)


def from_bins(bins: np.ndarray, counts: np.ndarray, width: float) -> pd.DataFrame:
    """The table of ``counts`` in the bins [k width, (k + 1) width) for whole k in ``bins``."""
    start = bins * width
    if math.frexp(width)[0] != 0.5:  # not a power of two: the product is not exact, and 7 * 0.01 shall be written 0.07
        start = np.round(start, 8 - math.floor(math.log10(width)))
    return pd.DataFrame({"start": start, "width": float(width), "count": counts}).astype(COLUMNS)


def packed(table: pd.DataFrame) -> dict:
    """A histogram for the record: bins as whole multiples of the width."""
    width = float(table["width"].iloc[0])
    bins = np.rint(table["start"].to_numpy(np.float64) / width).astype(int)
    return {"width": width, "bins": bins.tolist(), "counts": table["count"].tolist()}


def unpacked(record: dict) -> pd.DataFrame:
    """The histogram that :func:`packed` packed."""
    return from_bins(np.array(record["bins"]), np.array(record["counts"]), record["width"])
