"""Pooled test AUC of every cell over the bytes that a client exchanged for it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fedbrain.evaluation.reported import interval_words, reported_auc
from fedbrain.figures.style import (
    COLORS,
    GUIDE,
    MARKERS,
    PAGE,
    POOLED,
    SITE_ONLY,
    auc_floor,
    footnotes,
    shown_name,
    site_only_auc,
    styled,
    subject_counts,
    text_figure,
)
from fedbrain.registry import REFERENCES

NEAR = 0.019  # of the axis: points that are nearer to each other than this stand side by side
_CELL = ["head", "tuning", "aggregation"]


@styled
def auc_by_cost(performance: pd.DataFrame, efficiency: pd.DataFrame, *, level: float = 0.95) -> Figure:
    """Draws each cell's pooled AUC with its interval over the bytes per client of the whole run, both ways, on a log axis.

    performance: table PERFORMANCE, efficiency: table EFFICIENCY (``bytes_run``), level: of the intervals. Cells that send
    nothing (local and centralized training) stand apart on the left. Colour is head and tuning, the marker the
    aggregation. Points of nearly equal cost stand side by side, with strokes on the axis at the costs themselves.
    """
    aucs = reported_auc(performance)
    aucs = aucs[(aucs["client"] == POOLED) & (aucs["head"] != SITE_ONLY)]
    cells = aucs.merge(efficiency[[*_CELL, "bytes_run"]], on=_CELL)
    drawn = cells.dropna(subset=["value", "bytes_run"]).reset_index(drop=True)
    if drawn.empty:
        return text_figure("No cell has a pooled AUC and a cost.")
    colors = _by_place(list(dict.fromkeys(zip(cells["head"], cells["tuning"]))), COLORS)
    markers = _by_place(list(dict.fromkeys(cells["aggregation"])), MARKERS)
    silent, sending = drawn[drawn["bytes_run"] == 0], drawn[drawn["bytes_run"] > 0]
    figure = Figure(figsize=(PAGE, 3.6 + 0.2 * -(-(len(colors) + len(markers) + 2) // 4)))
    widths = [max(0.8, 0.16 * len(silent))] * (len(silent) > 0) + [4.0] * (len(sending) > 0)
    panels = list(figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0])
    floor, baseline = auc_floor(drawn), site_only_auc(performance)
    panels[0].set_ylabel(f"pooled test AUC, {interval_words(drawn, level)}" + _start(floor))
    for axes in panels:
        axes.axhline(0.5, color=GUIDE, linestyle=":", linewidth=1.2, zorder=1.5)
        if baseline is not None:
            axes.axhline(baseline, color=GUIDE, linestyle="--", linewidth=1, zorder=1.5)
        axes.grid(axis="y")
        axes.set_ylim(floor, 1.0)
    if len(silent):
        axes = panels[0]
        _points(axes, silent, np.arange(len(silent)), colors, markers)
        axes.set_xlim(-0.8, len(silent) - 0.2)
        axes.set_xticks([(len(silent) - 1) / 2], ["sends\nnothing"])
        axes.tick_params(axis="x", length=0)
        axes.set_facecolor("#F4F4F4")
    if len(sending):
        _sending(panels[-1], sending, colors, markers)
    figure.legend(handles=_handles(colors, markers, baseline), loc="outside upper center", ncols=4, columnspacing=1.4)
    side = "Points of nearly equal cost stand side by side; strokes on the axis are the costs themselves."
    side = [side] if len(sending) > 1 else []
    footnotes(figure, [f"Pooled test set: {subject_counts(drawn)[POOLED]}.", *side])
    return figure


def spread(places: Sequence[float], near: float) -> np.ndarray:
    """The places, (n,), moved apart around their middle where neighbours are nearer than ``near``, in the order given."""
    places = np.asarray(places, dtype=float)
    result, order = places.copy(), np.argsort(places, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(places[order]) >= near) + 1)
    # Groups that would run into each other once they are spread become one.
    merged = [groups[0]]
    for group in groups[1:]:
        room = near * (len(merged[-1]) + len(group)) / 2
        if places[group].mean() - places[merged[-1]].mean() < room:
            merged[-1] = np.concatenate([merged[-1], group])
        else:
            merged.append(group)
    for group in merged:
        if len(group) > 1:
            result[group] = places[group].mean() + near * (np.arange(len(group)) - (len(group) - 1) / 2)
    return result


def _sending(axes, sending, colors, markers):
    logs = np.log10(sending["bytes_run"].to_numpy(float))
    width = max(1.0, np.ptp(logs) * 1.15)
    places = spread(logs, NEAR * width)
    _points(axes, sending, 10**places, colors, markers)
    for place, row in zip(10**logs, sending.to_dict("records")):  # what it really cost
        color = colors[row["head"], row["tuning"]]
        axes.plot([place], [0.0], "|", color=color, transform=axes.get_xaxis_transform(), gid="cost", ms=16, mew=2)
    axes.set_xscale("log")
    middle = (min(places.min(), logs.min()) + max(places.max(), logs.max())) / 2
    half = max(width, np.ptp(places) * 1.15 + 0.1) / 2
    axes.set_xlim(10 ** (middle - half), 10 ** (middle + half))
    low, high = int(np.ceil(middle - half)), int(np.floor(middle + half))
    steps = (1, 3) if high - low < 3 else (1,)
    ticks = [factor * 10.0**power for power in range(low - 1, high + 1) for factor in steps]
    axes.xaxis.set_major_locator(FixedLocator([t for t in ticks if middle - half <= np.log10(t) <= middle + half]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: in_bytes(value)))
    axes.set_xlabel("sent and received per client, whole run (log scale)")


def in_bytes(value: float) -> str:
    """``30 kB``, in powers of 1000."""
    power = int(np.clip(np.floor(np.log10(value) / 3 + 1e-9), 0, 4))
    return f"{value / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _points(axes, rows, places, colors, markers):
    for place, row in zip(places, rows.to_dict("records")):
        low, high = (row["value"] if pd.isna(row[name]) else row[name] for name in ("low", "high"))
        color = colors[row["head"], row["tuning"]]
        axes.errorbar(
            place,
            row["value"],
            yerr=[[max(0, row["value"] - low)], [max(0, high - row["value"])]],
            fmt=markers[row["aggregation"]],
            color=color,
            mfc="white" if row["aggregation"] in REFERENCES else color,
            elinewidth=1,
            capsize=2,
            clip_on=False,
        )


def _by_place(names, choices):
    return {name: choices[n % len(choices)] for n, name in enumerate(names)}


def _start(floor):
    return f"\n(axis starts at {floor:g})" if floor else ""


def _handles(colors, markers, baseline):
    handles = [
        Line2D([], [], color=color, linewidth=4, label=f"{shown_name(head)}, {shown_name(tuning)}")
        for (head, tuning), color in colors.items()
    ]
    for name, marker in markers.items():
        face = "white" if name in REFERENCES else GUIDE
        handles.append(Line2D([], [], color=GUIDE, marker=marker, mfc=face, linestyle="none", label=shown_name(name)))
    handles.append(Line2D([], [], color=GUIDE, linestyle=":", linewidth=1.2, label="chance (0.5)"))
    if baseline is not None:
        label = f"site only ({baseline:.2f})"
        handles.append(Line2D([], [], color=GUIDE, linestyle="--", linewidth=1, label=label))
    return handles
