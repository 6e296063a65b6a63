"""Intensity profiles: the density of all voxels within the brain masks of all scans, per client.

Densities come from histogram counts, which add up over scans and shards, so no voxel needs to leave a client. A profile
is the histogram, taken as evenly filled bins, convolved with a Gaussian of one fixed width for all clients: a kernel
density estimate whose error against one on the voxels themselves is that of the bin width alone.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.special import ndtr

from fedbrain.figures.style import PAGE, cohort_styles, say, styled

BANDWIDTH_Z = 0.04  # standard deviations of a scan's own intensities
BANDWIDTH_DECADES = 0.01  # on a log10 axis: 2.3 % of the intensity
BINS = 4096
NORMALIZED = {  # unit of the axis after normalization, and the bandwidth in it; None: still the scanner's, log axis
    "encoder": ("z", BANDWIDTH_Z),
    "zscore": ("z", BANDWIDTH_Z),
    "minmax": ("0.1st to 99.9th percentile = 0 to 1", 0.01),
    "whitestripe": ("deviations of the white stripe", 0.7),
    "kde": ("white matter's peak = 1", 0.01),
    "fcm": ("white matter's mean = 1", 0.01),
    "nyul": ("z of the standard scale", BANDWIDTH_Z),
    "none": None,
}
TAIL = 5e-4  # share of a client's voxels beyond either end of the axis, which may be cut there

_POINTS = 800


@styled
def intensity_profiles(
    histograms: Mapping[str, pd.DataFrame], cohorts: Sequence[str] | None = None, *, intensity: str = "encoder"
) -> Figure:
    """Draws each client's intensity profile before and after normalization, side by side.

    histograms: for each client a table HISTOGRAM (the rows of all its scans and shards; bins may repeat and differ in
    width). cohorts: all cohorts in the order of the config, for their colours; the keys of ``histograms`` if not given.
    intensity: name of the normalization, for the axis; a name that NORMALIZED does not have is taken for a z-score.

    Before normalization every scanner has a scale of its own and they may differ tenfold, so that axis is logarithmic
    and the density is per decade: a change of scale moves a profile and leaves its shape. Voxels at or below 0 have no
    place there; where they are more than 1 in 1,000 the legend says how many. After normalization the axis is linear.
    Each axis ends where the outermost 0.05 % of a client's voxels begin.
    """
    styles = cohort_styles(list(histograms) if cohorts is None else cohorts)
    figure = Figure(figsize=(PAGE, 3.2))
    before, after = figure.subplots(1, 2)
    before.set_title("before normalization")
    after.set_title("after normalization")
    drawn = {}
    _scanner_units(before, _stage(histograms, "before"), styles, drawn)
    scale = NORMALIZED.get(intensity, NORMALIZED["zscore"])
    if scale is None:
        _scanner_units(after, _stage(histograms, "after"), styles, {})
    else:
        _normalized(after, _stage(histograms, "after"), styles, drawn, *scale)
    if drawn:
        order = [client for client in styles if client in drawn]
        figure.legend(handles=[drawn[client] for client in order], loc="outside lower center", ncols=min(4, len(order)))
    return figure


def intensity_density(volumes_and_masks: Iterable, grid: np.ndarray, *, bandwidth: float = BANDWIDTH_Z) -> np.ndarray:
    """Density of the voxels within the masks of all volumes, at the points of ``grid``.

    volumes_and_masks: pairs of arrays of one shape, gone through once, one pair in memory at a time. grid: increasing,
    in the volumes' units; bandwidth: standard deviation of the Gaussian, in the same units. Returns densities per unit.
    Raises ValueError where no mask holds a voxel.

    A histogram of 4,096 bins over the grid's range, smoothed; voxels outside of that range count in the total.
    """
    grid = np.asarray(grid, dtype=float)
    # Voxels beyond five bandwidths from the grid add less than 1e-6 of their kernel's peak to it.
    edges = np.linspace(grid.min() - 5 * bandwidth, grid.max() + 5 * bandwidth, BINS + 1)
    per_unit = np.float32(BINS / (edges[-1] - edges[0]))
    first = np.float32(2 * edges[0] - edges[1])  # where the bin before the first one begins
    counts, total = np.zeros(BINS), 0
    for volume, mask in volumes_and_masks:
        voxels = np.asarray(volume)[np.asarray(mask, dtype=bool)]
        # Bins are of one width, so a voxel's is computed; what lies outside goes into one more bin at either end.
        places = np.clip((voxels - first) * per_unit, 0, BINS + 1).astype(np.int32)
        counts += np.bincount(places, minlength=BINS + 2)[1:-1]
        total += voxels.size
    if not total:
        raise ValueError("no voxel within any mask")
    return smoothed_density(edges[:-1], edges[1:], counts / total, grid, bandwidth)


def smoothed_density(
    starts: np.ndarray, ends: np.ndarray, shares: np.ndarray, grid: np.ndarray, bandwidth: float
) -> np.ndarray:
    """Density at ``grid`` of bins that hold ``shares`` of all voxels, evenly spread, convolved with a Gaussian."""
    density = np.zeros(len(grid))
    block = max(1, (1 << 21) // len(grid))
    for first in range(0, len(starts), block):
        part = slice(first, first + block)
        a, b = starts[part, None], ends[part, None]  # (B, 1)
        kernel = (ndtr((grid - a) / bandwidth) - ndtr((grid - b) / bandwidth)) / (b - a)  # (B, G)
        density += shares[part] @ kernel
    return density


def _stage(histograms, stage) -> dict:
    """Per client the bins that hold voxels, equal ones added up: start, end, count."""
    result = {}
    for client, table in histograms.items():
        rows = table[(table["stage"] == stage) & (table["count"] > 0)]
        if len(rows):
            bins = rows.groupby(["start", "width"], as_index=False)["count"].sum()
            start, width, count = (bins[name].to_numpy(float) for name in ("start", "width", "count"))
            result[client] = start, start + width, count
    return result


def _scanner_units(axes, bins, styles, drawn):
    positive, hidden = {}, {}
    for client, (start, end, count) in bins.items():
        above = start > 0
        hidden[client] = 1 - count[above].sum() / count.sum()
        if above.any():
            positive[client] = np.log10(start[above]), np.log10(end[above]), count[above], count.sum()
    if not positive:
        say(axes, f"no voxels counted {axes.get_title(loc='left')}")
        return
    grid = _grid(positive, BANDWIDTH_DECADES)
    for client, (start, end, count, total) in positive.items():
        density = smoothed_density(start, end, count / total, grid, BANDWIDTH_DECADES)
        line = _draw(axes, 10**grid, density, styles[client], client)
        if hidden[client] > 1e-3:
            line.set_label(f"{client} ({hidden[client]:.1%} of raw voxels ≤ 0)")
        drawn[client] = line
    axes.set_xscale("log")
    # Plain numbers, as many as fit: the default writes 3 x 10^2 at every mark of a short axis, one over the other.
    decades = grid[-1] - grid[0]
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1, 2, 3, 4, 6, 8) if decades < 0.5 else (1, 2, 5) if decades < 1.6 else (1,))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("intensity (scanner units, log axis)")
    axes.set_ylabel("density (per decade)")
    axes.set_xlim(10 ** grid[0], 10 ** grid[-1])
    axes.set_ylim(bottom=0)


def _normalized(axes, bins, styles, drawn, unit, bandwidth):
    if not bins:
        say(axes, f"no voxels counted {axes.get_title(loc='left')}")
        return
    bins = {client: (start, end, count, count.sum()) for client, (start, end, count) in bins.items()}
    grid = _grid(bins, bandwidth)
    for client, (start, end, count, total) in bins.items():
        density = smoothed_density(start, end, count / total, grid, bandwidth)
        drawn.setdefault(client, _draw(axes, grid, density, styles[client], client))
    axes.set_xlabel(f"intensity ({unit})")
    axes.set_ylabel("density (per unit)")
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(bottom=0)


def _draw(axes, x, density, style, client):
    return axes.plot(x, density, color=style.color, linestyle=style.line, label=client)[0]


def _grid(bins, bandwidth):
    """Points from the lowest client's lower tail to the highest client's upper tail, with room for the kernel."""
    lows, highs = [], []
    for start, end, count, _ in bins.values():
        order = np.argsort(start)
        cumulative = np.cumsum(count[order]) / count.sum()
        lows.append(start[order][np.searchsorted(cumulative, TAIL)])
        highs.append(end[order][min(np.searchsorted(cumulative, 1 - TAIL), len(order) - 1)])
    return np.linspace(min(lows) - 3 * bandwidth, max(highs) + 3 * bandwidth, _POINTS)
