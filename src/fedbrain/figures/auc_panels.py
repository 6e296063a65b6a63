"""Panels of test AUC with intervals, group by group and cohort by cohort: what two figures share."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from fedbrain.evaluation.reported import interval_words, reported_auc
from fedbrain.figures.style import (
    GUIDE,
    PAGE,
    RULE,
    SITE_ONLY,
    SMALL,
    auc_floor,
    client_styles,
    footnotes,
    short_name,
    shown_name,
    site_only_auc,
    subject_counts,
)

GROUPS_PER_ROW = 5  # panels stand side by side while a row has no more groups than this


class Group(NamedTuple):
    """A place on the x axis: its label, the cell that it shows, and whether it is a reference beside the others."""

    label: str
    cell: tuple[str, str, str]  # head, tuning, aggregation
    reference: bool = False


def auc_panels(
    performance: pd.DataFrame, cohorts: Sequence[str], panels: Sequence[tuple[str, Sequence[Group]]], *, level: float
) -> Figure:
    """Draws test AUC with its interval, a panel per entry of ``panels`` (title, groups), each cohort and pooled in every group.

    Chance (0.5) and the pooled AUC of the site-only baseline, where the table has it, are lines; references stand behind a
    darker line, with hollow markers. A cohort without an AUC is marked, and explained below.
    """
    auc = reported_auc(performance)
    auc = auc.set_index(["head", "tuning", "aggregation"], drop=False).sort_index()
    wanted = list(dict.fromkeys(group.cell for _, groups in panels for group in groups))
    cells = pd.concat([auc.loc[[cell]] for cell in wanted])
    styles, floor, baseline = client_styles(cohorts), auc_floor(cells), site_only_auc(performance)

    most = max(len(groups) for _, groups in panels)
    columns = max(1, min(len(panels), GROUPS_PER_ROW // most))
    rows = -(-len(panels) // columns)
    legend_lines = -(-(len(styles) + 2) // 2)
    figure = Figure(figsize=(PAGE, 2.6 * rows + 0.2 * legend_lines + 0.1))
    places = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, (title, groups) in zip(places, panels):
        _panel(axes, cells, groups, styles, floor, most)
        axes.set_title(title)
        if baseline is not None:
            axes.axhline(baseline, color=GUIDE, linestyle="--", linewidth=1, zorder=1.5)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes in places[: len(panels) : columns]:
        axes.set_ylabel(
            f"test AUC\n{interval_words(cells, level)}" + (f"\n(axis starts at {floor:g})" if floor else "")
        )

    counts = subject_counts(cells)
    handles = [
        Line2D([], [], color=style.color, marker=style.marker, linestyle="none", label=_label(client, counts))
        for client, style in styles.items()
    ]
    handles.append(Line2D([], [], color=GUIDE, linestyle=":", linewidth=1.2, label="chance (0.5)"))
    if baseline is not None:
        label = f"site only, pooled ({baseline:.2f})"
        handles.append(Line2D([], [], color=GUIDE, linestyle="--", linewidth=1, label=label))
    if any(group.reference for _, groups in panels for group in groups):
        marks = {"color": GUIDE, "marker": "o", "markerfacecolor": "white", "linestyle": "none"}
        handles.append(Line2D([], [], **marks, label="hollow: reference, see caption"))
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    footnotes(figure, _notes(cells, styles))
    return figure


def reference_groups(performance: pd.DataFrame, references: Sequence[str], aggregation: str) -> list[Group]:
    """A group for each reference head that was run: under ``aggregation``, or under the first that it was run with."""
    groups = []
    for head in references:
        cells = performance[(performance["head"] == head) & (performance["head"] != SITE_ONLY)]
        cells = cells.sort_values("aggregation", key=lambda names: names != aggregation, kind="stable")
        for row in cells.head(1).itertuples():
            other = "" if row.aggregation == aggregation else f"\n{shown_name(row.aggregation)}"
            groups.append(Group(f"{shown_name(head)}{other}", (head, row.tuning, row.aggregation), reference=True))
    return groups


def _panel(axes, cells, groups: Sequence[Group], styles, floor, most):
    for (client, style), offset in zip(styles.items(), np.linspace(-0.36, 0.36, len(styles))):
        own = cells[cells["client"] == client]
        for place, group in enumerate(groups):
            found = own.loc[[group.cell]] if group.cell in own.index else own.iloc[:0]
            if found.empty:
                continue
            value, low, high = (
                found.iloc[0][["value", "low", "high"]].astype("Float64").to_numpy(float, na_value=np.nan)
            )
            if np.isfinite(value):
                axes.errorbar(
                    place + offset,
                    value,
                    yerr=[[max(0, value - low)], [max(0, high - value)]],
                    fmt=style.marker,
                    color=style.color,
                    markerfacecolor="white" if group.reference else style.color,
                    elinewidth=1.2,
                    clip_on=False,
                )
            else:
                axes.text(
                    place + offset, floor + 0.015, "no AUC", rotation=90, ha="center", va="bottom", color=style.color,
                    fontsize=SMALL,
                )  # fmt: skip
    axes.axhline(0.5, color=GUIDE, linestyle=":", linewidth=1.2, zorder=1.5)
    for place in range(1, len(groups)):
        first = groups[place].reference and not groups[place - 1].reference
        axes.axvline(place - 0.5, color=GUIDE if first else RULE, linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(groups)), [group.label for group in groups])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, most - 0.5)  # the same width of a group in every panel
    axes.set_ylim(floor, 1.0)
    axes.yaxis.set_major_locator(MultipleLocator(0.1 if floor >= 0.3 else 0.2))
    axes.grid(axis="y")


def _label(client, counts):
    return f"{shown_name(short_name(client, 34))} ({counts[client]})" if client in counts else client


def _notes(cells, clients) -> list[str]:
    """What the table says of the clients' AUC, each note once, with the clients that it is of."""
    notes = cells.dropna(subset=["note"])
    of: dict[str, list[str]] = {}
    for client in clients:
        for note in notes.loc[notes["client"] == client, "note"].unique():
            of.setdefault(note, []).append(shown_name(client))
    return [f"{', '.join(named)}: {note}." for note, named in of.items()]
