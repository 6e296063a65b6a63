"""Calibration curves of the heads, all test subjects together, with the scans that stand behind each point."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedbrain.figures.style import (
    COLORS,
    GUIDE,
    PAGE,
    POOLED,
    SMALL,
    footnotes,
    say,
    shown_name,
    styled,
    text_figure,
)

COLUMNS = 3
_CELL = ["head", "tuning", "aggregation"]


@styled
def calibration_curves(
    calibration: pd.DataFrame, performance: pd.DataFrame, *, aggregation: str = "fedavg", level: float = 0.95
) -> Figure:
    """Draws a panel per head and tuning under one aggregation: share of cases over mean score, bin by bin.

    calibration: table CALIBRATION. performance: table PERFORMANCE, from which come slope and intercept in the panels.
    level: of the intervals. The first seed has points with Wilson's intervals, and below its panel the number of cases
    (up) and controls (down) of each bin; other seeds are thin lines, since a curve is of one model. A curve that does not
    exist says why.
    """
    own = calibration[(calibration["client"] == POOLED) & (calibration["aggregation"] == aggregation)]
    cells = list(dict.fromkeys(zip(*(own[name] for name in _CELL))))
    if not cells:
        return text_figure(f"No cell with aggregation {shown_name(aggregation)} has been evaluated.")
    columns = min(COLUMNS, max(2, len(cells)))
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(PAGE, (PAGE / columns * 1.12 + 0.75) * rows + 0.7))
    grid = figure.subplots(2 * rows, columns, squeeze=False, sharex=True, height_ratios=[1, 0.28] * rows)
    most = max(int((own["scans"] - own["cases"]).max() or 0), int(own["cases"].max() or 0), 1)
    for number in range(rows * columns):
        upper, lower = (
            grid[2 * (number // columns), number % columns],
            grid[2 * (number // columns) + 1, number % columns],
        )
        if number >= len(cells):
            upper.set_axis_off()
            lower.set_axis_off()
            continue
        cell = cells[number]
        curves = own[(own[_CELL] == list(cell)).all(axis=1)]
        upper.set_title(f"{shown_name(cell[0])}\n{shown_name(cell[1])}, {shown_name(cell[2])}\n", fontsize=SMALL, pad=2)
        _panel(upper, lower, curves, most)
        _numbers(upper, performance, cell)
        if number % columns == 0:
            upper.set_ylabel("share of cases")
            lower.set_ylabel("scans")
        else:
            upper.yaxis.set_tick_params(labelleft=False)
            lower.yaxis.set_tick_params(labelleft=False)
        if number >= len(cells) - columns:
            lower.set_xlabel("score")
            lower.xaxis.set_tick_params(labelbottom=True)
    figure.legend(handles=_handles(own, level), loc="outside upper center", ncols=3, columnspacing=1.4)
    footnotes(figure, [f"{note}." for note in own.dropna(subset=["score"])["note"].dropna().unique()][:1])
    return figure


def _panel(upper, lower, curves, most):
    upper.set_xlim(-0.02, 1.02)
    upper.set_ylim(-0.02, 1.02)
    for axis in (upper.xaxis, upper.yaxis):
        axis.set_ticks([0, 0.5, 1], ["0", "0.5", "1"])
    lower.set_ylim(-1.15 * most, 1.15 * most)
    lower.set_yticks([-most, 0, most], [f"{most}", "0", f"{most}"])
    lower.axhline(0, color=GUIDE, linewidth=0.8)
    lower.spines["bottom"].set_visible(False)
    points = curves.dropna(subset=["score", "share"])
    if points.empty:
        reasons = curves["note"].dropna().unique()
        lower.set_axis_off()
        return say(upper, reasons[0] if len(reasons) else "no curve", width=22)
    upper.plot([0, 1], [0, 1], color=GUIDE, linestyle=":", linewidth=1.2, zorder=1)
    for place, (_, curve) in enumerate(points.groupby("seed", sort=True)):
        score, share, low, high = (curve[name].to_numpy(float) for name in ("score", "share", "low", "high"))
        if place:
            upper.plot(score, share, color=COLORS[0], linewidth=0.7, alpha=0.6, gid="seed")
            continue
        upper.errorbar(
            score,
            share,
            yerr=np.maximum([share - low, high - share], 0),
            color=COLORS[0],
            marker="o",
            markersize=4,
            linewidth=1.4,
            elinewidth=0.9,
            capsize=2,
            zorder=3,
        )
        cases = curve["cases"].to_numpy(float)
        controls = curve["scans"].to_numpy(float) - cases
        lower.vlines(score, 0, cases, color=COLORS[1], linewidth=2.2, gid="cases")
        lower.vlines(score, -controls, 0, color=COLORS[0], linewidth=2.2, gid="controls")
    return None


def _numbers(axes, performance, cell):
    """Slope and intercept, as the table has them."""
    rows = performance[(performance[_CELL] == list(cell)).all(axis=1) & (performance["client"] == POOLED)]
    values = rows.drop_duplicates("metric").set_index("metric")["value"]
    lines = [
        f"{name} {values[f'calibration_{name}']:.2f}"
        for name in ("slope", "intercept")
        if f"calibration_{name}" in values and not pd.isna(values[f"calibration_{name}"])
    ]
    if lines:
        axes.annotate(
            ", ".join(lines), (0, 1), (0, 3), "axes fraction", textcoords="offset points", fontsize=SMALL, color=GUIDE
        )


def _handles(own, level):
    first = "first seed" if own["seed"].nunique() > 1 else "bins"
    handles = [
        Line2D(
            [], [], color=COLORS[0], marker="o", markersize=4, label=f"{first}, {100 * level:g} % interval (Wilson)"
        ),
        Line2D([], [], color=GUIDE, linestyle=":", linewidth=1.2, label="perfectly calibrated"),
        Line2D([], [], color=COLORS[1], linewidth=2.2, label="cases of a bin (up)"),
        Line2D([], [], color=COLORS[0], linewidth=2.2, label="controls of a bin (down)"),
    ]
    if own["seed"].nunique() > 1:
        handles.insert(1, Line2D([], [], color=COLORS[0], linewidth=0.7, alpha=0.6, label="other seeds"))
    return handles
