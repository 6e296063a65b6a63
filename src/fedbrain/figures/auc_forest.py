"""Forest plot: the pooled test AUC of every cell with its interval, and what it must be read against."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from fedbrain.evaluation.reported import interval_words, reported_auc
from fedbrain.figures.style import (
    GUIDE,
    PAGE,
    POOLED,
    POOLED_COLOR,
    POOLED_MARKER,
    RULE,
    SITE_ONLY,
    SMALL,
    auc_floor,
    footnotes,
    shown_name,
    site_only_auc,
    styled,
    subject_counts,
    text_figure,
)
from fedbrain.registry import REFERENCES

ROW = 0.235  # inches


@styled
def auc_forest(performance: pd.DataFrame, *, level: float = 0.95) -> Figure:
    """Draws the pooled AUC of every cell, a row each, in blocks of one head and tuning, with the numbers beside it.

    performance: table PERFORMANCE. level: of its intervals. Where a class has fewer than 20 subjects the interval is
    DeLong's (:func:`fedbrain.evaluation.reported.reported_auc`). Chance is a dotted line; the classifier that knows the site
    alone a dashed line with its interval as a band. Centralized and local training are hollow. A cell without an AUC
    keeps its row and says so.
    """
    aucs = reported_auc(performance)
    aucs = aucs[aucs["client"] == POOLED]
    cells = aucs[aucs["head"] != SITE_ONLY]
    if cells.empty:
        return text_figure("No cell has been evaluated.")
    lines = []  # (place, label, row); a heading has no row
    for (head, tuning), block in cells.groupby(["head", "tuning"], sort=False):
        lines.append((f"{shown_name(head)}, {shown_name(tuning)}", None))
        lines += [(shown_name(row["aggregation"]), row) for row in block.to_dict("records")]
    figure = Figure(figsize=(PAGE, ROW * len(lines) + 1.2))
    axes = figure.subplots()
    floor, baseline = auc_floor(aucs), site_only_auc(performance)
    axes.set_xlim(floor, 1.0)
    axes.set_ylim(len(lines) - 0.4, -0.8)
    axes.spines["left"].set_visible(False)
    axes.axvline(0.5, color=GUIDE, linestyle=":", linewidth=1.2, zorder=1.5)
    if baseline is not None:
        _baseline(axes, aucs, baseline)
    axes.text(1.02, -0.7, "AUC  [interval]", transform=axes.get_yaxis_transform(), fontsize=SMALL, color=GUIDE)
    for place, (_, row) in enumerate(lines):
        if row is None:
            axes.axhline(place - 0.5, color=RULE, linewidth=0.8, zorder=0)
        else:
            _row(axes, place, row, floor)
    axes.set_yticks(range(len(lines)), [label for label, _ in lines])
    axes.tick_params(axis="y", length=0)
    for label, (_, row) in zip(axes.get_yticklabels(), lines):
        label.set_fontweight("bold" if row is None else "normal")
    axes.xaxis.set_major_locator(MultipleLocator(0.1))
    axes.grid(axis="x")
    counts = subject_counts(cells)[POOLED]
    axis = f" (axis starts at {floor:g})" if floor else ""
    axes.set_xlabel(f"pooled test AUC, {interval_words(cells, level)}, {counts}{axis}")
    figure.legend(handles=_handles(cells, baseline), loc="outside upper center", ncols=4, columnspacing=1.4)
    footnotes(figure, _notes(cells))
    return figure


def _row(axes, place, row, floor):
    numbers = axes.get_yaxis_transform()
    if pd.isna(row["value"]):
        axes.text(floor + 0.01, place, "no AUC", va="center", color=GUIDE, fontsize=SMALL)
        return
    value, low, high = row["value"], row["low"], row["high"]
    text = f"{value:.2f}"
    if not pd.isna(low):
        text += f"  [{low:.2f}, {high:.2f}]"
        axes.plot([low, high], [place, place], color=POOLED_COLOR, linewidth=1.2, solid_capstyle="butt", gid="interval")
        axes.plot([low, high], [place, place], color=POOLED_COLOR, marker="|", markersize=6, linestyle="none")
    axes.plot(
        value,
        place,
        marker=POOLED_MARKER,
        color=POOLED_COLOR,
        mfc="white" if row["aggregation"] in REFERENCES else POOLED_COLOR,
        linestyle="none",
        clip_on=False,
        zorder=3,
        gid="value",
    )
    axes.text(1.02, place, text, transform=numbers, va="center", fontsize=SMALL)


def _baseline(axes, aucs, value):
    row = aucs[aucs["head"] == SITE_ONLY].iloc[0]
    if not pd.isna(row["low"]):
        axes.axvspan(row["low"], row["high"], color="#EDEDED", linewidth=0, zorder=0)
    axes.axvline(value, color=GUIDE, linestyle="--", linewidth=1, zorder=1.5)


def _handles(cells, baseline):
    handles = [Line2D([], [], color=POOLED_COLOR, marker=POOLED_MARKER, linewidth=1.2, label="federated")]
    if cells["aggregation"].isin(REFERENCES).any():
        handles.append(
            Line2D([], [], color=POOLED_COLOR, marker=POOLED_MARKER, mfc="white", linewidth=1.2, label="not federated")
        )
    handles.append(Line2D([], [], color=GUIDE, linestyle=":", linewidth=1.2, label="chance (0.5)"))
    if baseline is not None:
        label = f"site only ({baseline:.2f}), band: its interval"
        handles.append(Line2D([], [], color=GUIDE, linestyle="--", linewidth=1, label=label))
    return handles


def _notes(cells) -> list[str]:
    """What the table says of the cells, each remark once with those that it is about."""
    about: dict[str, list[str]] = {}
    for row in cells.dropna(subset=["note"]).to_dict("records"):
        about.setdefault(row["note"], []).append(row["aggregation"])
    notes = []
    for note, names in about.items():
        everywhere = len(names) == len(cells)
        who = "" if everywhere else ", ".join(shown_name(name) for name in dict.fromkeys(names)) + ": "
        notes.append(f"{who}{note}.")
    return notes
