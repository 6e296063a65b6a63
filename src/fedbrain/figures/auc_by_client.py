"""AUC by client and aggregation: one panel per client, one row per aggregation."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from fedbrain.evaluation.reported import interval_words, reported_auc
from fedbrain.figures.style import (
    GUIDE,
    PAGE,
    POOLED,
    auc_floor,
    client_styles,
    footnotes,
    say,
    short_name,
    shown_name,
    site_only_auc,
    styled,
    subject_counts,
    text_figure,
)
from fedbrain.registry import REFERENCES  # no federation: drawn hollow, on a grey band

COLUMNS = 3


@styled
def auc_by_client(
    performance: pd.DataFrame, cohorts: Sequence[str], head: str, *, tuning: str | None = None, level: float = 0.95
) -> Figure:
    """Draws test AUC with its interval for each aggregation, in one panel per cohort and one for all pooled.

    performance: table PERFORMANCE. cohorts: all cohorts in the order of the config. tuning: the first one that the head
    was trained with, if not given. level: of the table's intervals. Centralized and local training, which are no
    federation, stand apart below the aggregations. The site-only baseline, where the table has it, is a line in the
    pooled panel.
    A panel without an AUC says why.
    """
    auc = reported_auc(performance)
    cells = auc[auc["head"] == head]
    if tuning is None and len(cells):
        tuning = cells["tuning"].iloc[0]
    cells = cells[cells["tuning"] == tuning]
    if cells.empty:
        trained = f" and tuning {shown_name(tuning)}" if tuning else ""
        return text_figure(f"No cell with head {shown_name(head)}{trained} has been evaluated.")
    places = _places(list(dict.fromkeys(cells["aggregation"])))
    styles, floor, baseline = client_styles(cohorts), auc_floor(cells), site_only_auc(performance)
    counts = subject_counts(cells)

    columns = min(COLUMNS, len(styles))
    rows = -(-len(styles) // columns)
    figure = Figure(figsize=(PAGE, rows * (0.24 * len(places) + 0.95) + 0.6))
    figure.get_layout_engine().set(w_pad=0.09)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for number, (axes, (client, style)) in enumerate(zip(panels, styles.items())):
        own = cells[cells["client"] == client].drop_duplicates("aggregation").set_index("aggregation")
        axes.set_title(f"{shown_name(short_name(client, 20))}\n", pad=2)
        axes.text(0, 1.03, counts.get(client, ""), transform=axes.transAxes, color=GUIDE)
        _panel(axes, own.reindex(list(places)), places, style, floor)
        if client == POOLED and baseline is not None:
            axes.axvline(baseline, color=GUIDE, linestyle="--", linewidth=1, zorder=1.5)
        if number >= len(styles) - columns:
            axes.set_xlabel("test AUC")
    for axes in panels[len(styles) :]:
        axes.set_axis_off()

    handles = [Line2D([], [], color=GUIDE, marker="o", label="federated")]
    if set(REFERENCES) & set(places):
        handles.append(Line2D([], [], color=GUIDE, marker="o", mfc="white", label="not federated"))
    handles.append(Line2D([], [], color=GUIDE, linestyle=":", linewidth=1.2, label="chance (0.5)"))
    if baseline is not None:
        label = f"site only, pooled ({baseline:.2f})"
        handles.append(Line2D([], [], color=GUIDE, linestyle="--", linewidth=1, label=label))
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=4,
        columnspacing=1.4,
        title=f"{shown_name(head)}, {shown_name(tuning)}",
        title_fontproperties={"weight": "bold", "size": 10},
        alignment="left",
    )
    footnotes(figure, [f"Bars: {interval_words(cells, level)}.", *_notes(cells, styles, floor)])
    return figure


def _places(aggregations) -> dict[str, float]:
    """Where each aggregation's row stands, downwards from 0: the rules, a gap, the references."""
    rules = [name for name in aggregations if name not in REFERENCES]
    references = [name for name in REFERENCES if name in aggregations]
    gap = 0.4 if rules else 0.0
    return {name: -float(n) for n, name in enumerate(rules)} | {
        name: -(len(rules) + n + gap) for n, name in enumerate(references)
    }


def _panel(axes, own, places, style, floor):
    axes.set_yticks(list(places.values()), [shown_name(name) for name in places])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(min(places.values()) - 0.5, 0.5)
    value, low, high = (own[name].to_numpy(float, na_value=np.nan) for name in ("value", "low", "high"))
    if not np.isfinite(value).any():
        reasons = own["note"].dropna().unique()
        say(axes, reasons[0] if len(reasons) else "not evaluated", width=26, keep_rows=True)
        return
    references = [place for name, place in places.items() if name in REFERENCES]
    if references:
        axes.axhspan(min(references) - 0.5, max(references) + 0.5, color="#F0F0F0", zorder=0, linewidth=0)
    for n, (name, place) in enumerate(places.items()):
        if np.isfinite(value[n]):
            axes.errorbar(
                value[n],
                place,
                xerr=[[max(0, value[n] - low[n])], [max(0, high[n] - value[n])]],
                fmt=style.marker,
                color=style.color,
                mfc="white" if name in REFERENCES else style.color,
                elinewidth=1.2,
                clip_on=False,
            )
        else:
            axes.text(floor + 0.02, place, "no AUC", va="center", color=GUIDE)
    axes.axvline(0.5, color=GUIDE, linestyle=":", linewidth=1.2, zorder=1.5)
    axes.set_xlim(floor, 1.0)
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    axes.grid(axis="x")


def _notes(cells, clients, floor) -> list[str]:
    """What the table says of values that are shown, and where the axes start. Missing ones have their panel's text."""
    notes = [f"AUC axes start at {floor:g}."] if floor else []
    shown = cells.dropna(subset=["value", "note"])
    for client in clients:
        own = shown[shown["client"] == client]
        for note in own["note"].unique():
            names = [shown_name(name) for name in own.loc[own["note"] == note, "aggregation"]]
            everywhere = len(names) == (cells["client"] == client).sum()
            notes.append(f"{shown_name(client)}{'' if everywhere else ', ' + ', '.join(names)}: {note}.")
    return notes
