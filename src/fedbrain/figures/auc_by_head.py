"""AUC by classification head and cohort, one panel per tuning."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

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
    styled,
    subject_counts,
    text_figure,
)

HEADS_PER_ROW = 4  # panels stand side by side while a row has no more groups than this


@styled
def auc_by_head(
    performance: pd.DataFrame, cohorts: Sequence[str], *, aggregation: str = "fedavg", level: float = 0.95
) -> Figure:
    """Draws test AUC with its interval for each head, cohort by cohort and pooled, under one aggregation.

    performance: table PERFORMANCE. cohorts: all cohorts in the order of the config. level: of the
    table's intervals. Chance (0.5) and the pooled AUC of
    the site-only baseline, where the table has it, are lines. A cohort without an AUC is marked, and explained below.
    """
    auc = performance[performance["metric"] == "auc"]
    cells = auc[(auc["aggregation"] == aggregation) & (auc["head"] != SITE_ONLY)]
    if cells.empty:
        return text_figure(f"No cell with aggregation {shown_name(aggregation)} has been evaluated.")
    heads, tunings = list(dict.fromkeys(cells["head"])), list(dict.fromkeys(cells["tuning"]))
    styles, floor, baseline = client_styles(cohorts), auc_floor(cells), site_only_auc(performance)

    columns = max(1, min(len(tunings), HEADS_PER_ROW // len(heads)))
    rows = -(-len(tunings) // columns)
    legend_lines = -(-(len(styles) + 2) // 2)
    figure = Figure(figsize=(PAGE, 2.6 * rows + 0.2 * legend_lines + 0.1))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, tuning in zip(panels, tunings):
        _panel(axes, cells[cells["tuning"] == tuning], heads, styles, floor)
        axes.set_title(f"{shown_name(tuning)}, {shown_name(aggregation)}")
        if baseline is not None:
            axes.axhline(baseline, color=GUIDE, linestyle="--", linewidth=1, zorder=1.5)
    for axes in panels[len(tunings) :]:
        axes.set_axis_off()
    for axes in panels[: len(tunings) : columns]:
        axes.set_ylabel(f"test AUC, {100 * level:g} % interval" + (f"\n(axis starts at {floor:g})" if floor else ""))

    counts = subject_counts(cells)
    handles = [
        Line2D([], [], color=style.color, marker=style.marker, linestyle="none", label=_label(client, counts))
        for client, style in styles.items()
    ]
    handles.append(Line2D([], [], color=GUIDE, linestyle=":", linewidth=1.2, label="chance (0.5)"))
    if baseline is not None:
        label = f"site only, pooled ({baseline:.2f})"
        handles.append(Line2D([], [], color=GUIDE, linestyle="--", linewidth=1, label=label))
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    footnotes(figure, _notes(cells, styles))
    return figure


def _panel(axes, cells, heads, styles, floor):
    for (client, style), offset in zip(styles.items(), np.linspace(-0.36, 0.36, len(styles))):
        own = cells[cells["client"] == client].drop_duplicates("head").set_index("head")
        for place, head in enumerate(heads):
            if head not in own.index:
                continue
            value, low, high = (
                own.loc[head, ["value", "low", "high"]].astype("Float64").to_numpy(float, na_value=np.nan)
            )
            if np.isfinite(value):
                axes.errorbar(
                    place + offset,
                    value,
                    yerr=[[max(0, value - low)], [max(0, high - value)]],
                    fmt=style.marker,
                    color=style.color,
                    elinewidth=1.2,
                    clip_on=False,
                )
            else:
                axes.text(
                    place + offset, floor + 0.015, "no AUC", rotation=90, ha="center", va="bottom", color=style.color,
                    fontsize=SMALL,
                )  # fmt: skip
    axes.axhline(0.5, color=GUIDE, linestyle=":", linewidth=1.2, zorder=1.5)
    for boundary in np.arange(len(heads) - 1) + 0.5:
        axes.axvline(boundary, color=RULE, linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(heads)), [shown_name(head) for head in heads])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(heads) - 0.5)
    axes.set_ylim(floor, 1.0)
    axes.yaxis.set_major_locator(MultipleLocator(0.1 if floor >= 0.3 else 0.2))
    axes.grid(axis="y")


def _label(client, counts):
    return f"{shown_name(short_name(client, 34))} ({counts[client]})" if client in counts else client


def _notes(cells, clients) -> list[str]:
    """What the table says of each client's AUC, once."""
    notes = cells.dropna(subset=["note"])
    return [
        f"{shown_name(client)}: {note}."
        for client in clients
        for note in notes.loc[notes["client"] == client, "note"].unique()
    ]
