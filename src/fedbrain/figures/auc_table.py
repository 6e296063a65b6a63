"""Heat map: the test AUC of every cell on every client, as a table to read at a glance."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fedbrain.evaluation.reported import reported_auc
from fedbrain.figures.style import (
    GUIDE,
    PAGE,
    POOLED,
    SITE_ONLY,
    SMALL,
    auc_floor,
    footnotes,
    short_name,
    shown_name,
    styled,
    text_figure,
)

MAP = "cividis"  # rises evenly in brightness, so it reads in grey and with any colour vision
ROW = 0.25  # inches


@styled
def auc_table(performance: pd.DataFrame, cohorts: Sequence[str]) -> Figure:
    """Draws a cell of the study a row, a client a column, the AUC in figures on a colour that rises with it.

    performance: table PERFORMANCE. cohorts: all cohorts in the order of the config; "pooled" is the last column. Bold figures
    have an interval wholly above 0.5. A client without an AUC has an empty place, and its reason stands below.
    """
    aucs = reported_auc(performance)
    aucs = aucs[aucs["head"] != SITE_ONLY]
    cells = list(dict.fromkeys(zip(aucs["head"], aucs["tuning"], aucs["aggregation"])))
    if not cells:
        return text_figure("No cell has been evaluated.")
    clients = [*cohorts, POOLED]
    rows = {(r["head"], r["tuning"], r["aggregation"], r["client"]): r for r in aucs.to_dict("records")}
    found = [[rows.get((*cell, client), {}) for client in clients] for cell in cells]
    values = np.array([[_number(row.get("value")) for row in line] for line in found])
    figure = Figure(figsize=(PAGE, ROW * len(cells) + 1.5))
    axes = figure.subplots()
    floor = auc_floor(aucs.assign(low=pd.NA))
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap=MAP, vmin=floor, vmax=1.0, aspect="auto", interpolation="nearest"
    )
    for y, line in enumerate(found):
        for x, row in enumerate(line):
            _figure(axes, x, y, row, image)
    _frame(axes, cells, clients, aucs)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label("test AUC" + (f" (scale starts at {floor:g})" if floor else ""))
    bar.ax.axhline(0.5, color="white", linewidth=1.5)
    bar.outline.set_visible(False)
    footnotes(figure, ["Bold: the interval lies above 0.5 (no correction for many cells).", *_notes(aucs, clients)])
    return figure


def _number(value) -> float:
    return np.nan if value is None or pd.isna(value) else float(value)


def _figure(axes, x, y, row, image):
    value = _number(row.get("value"))
    if np.isnan(value):
        axes.text(x, y, "–", ha="center", va="center", color=GUIDE, fontsize=SMALL)
        return
    ground = np.asarray(image.cmap(image.norm(value))[:3])
    luminance = np.where(ground <= 0.04045, ground / 12.92, ((ground + 0.055) / 1.055) ** 2.4) @ [
        0.2126,
        0.7152,
        0.0722,
    ]
    weight = "bold" if _number(row.get("low")) > 0.5 else "normal"
    color = "black" if luminance > 0.179 else "white"  # whichever has more contrast (WCAG 2.1)
    axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=color, fontsize=SMALL, fontweight=weight)


def _frame(axes, cells, clients, aucs):
    most = aucs.sort_values("subjects", ascending=False, kind="stable")  # a cell may have no model for a client
    counts = most.drop_duplicates("client").set_index("client")
    labels = []
    for client in clients:
        name = shown_name(short_name(client, 12))
        if client in counts.index:
            name += f"\n{int(counts.loc[client, 'positives'])} / {int(counts.loc[client, 'negatives'])}"
        labels.append(name)
    axes.set_xticks(range(len(clients)), labels)
    if len(clients) > 6:
        axes.tick_params(axis="x", labelrotation=90)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("test subjects: cases / controls", color=GUIDE, fontsize=SMALL)
    axes.set_yticks(range(len(cells)), [", ".join(map(shown_name, cell)) for cell in cells])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for place in range(1, len(cells)):
        new = cells[place][:2] != cells[place - 1][:2]
        axes.axhline(place - 0.5, color="white", linewidth=4 if new else 1)
    for place in range(1, len(clients)):
        axes.axvline(place - 0.5, color="white", linewidth=4 if clients[place] == POOLED else 1)


def _notes(aucs, clients) -> list[str]:
    """Why clients have no AUC, once each."""
    missing = aucs[aucs["value"].isna()].dropna(subset=["note"])
    return [
        f"{shown_name(client)}: {note}."
        for client in clients
        for note in missing.loc[missing["client"] == client, "note"].unique()
    ]
