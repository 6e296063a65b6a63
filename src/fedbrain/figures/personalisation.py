"""What a model of its own is worth to each client: its AUC minus those of the global model, of training alone, of pooled data."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedbrain.figures.style import (
    GUIDE,
    PAGE,
    POOLED,
    RULE,
    SMALL,
    cohort_colors,
    footnotes,
    short_name,
    shown_name,
    styled,
    text_figure,
)
from fedbrain.registry import GLOBAL

OTHERS = {  # what a client's own model is compared with: marker, words, downwards in this order
    "global": ("o", "global model"),
    "local": ("s", "local only"),
    "centralized": ("^", "centralized"),
}
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # behind a text that crosses a line
FEW = 10  # test subjects of a class below which limits are rough, as in the table
COLUMNS = 2
ROW, GAP, LABEL = 0.19, 0.13, 0.5  # inches: of a difference, between two clients, of a client's three lines


@styled
def personalisation(
    table: pd.DataFrame, cohorts: Sequence[str], head: str, tuning: str, *, level: float = 0.95
) -> Figure:
    """Draws, for each client, the difference in test AUC with its interval; a panel for each personalised aggregation.

    table: PERSONALISATION. cohorts: all cohorts in the order of the config. level: of the table's intervals. Clients stand
    by their number of training subjects, the smallest at the top; hollow markers have few test subjects of a class. Who
    has no difference says why. Pooled rows are not drawn: they mix scores of several models.
    """
    cells = table["cell_a"].str.split("/", expand=True).reindex(columns=range(3))
    rows = table.assign(rule=cells[2])[(cells[0] == head) & (cells[1] == tuning) & (table["client"] != POOLED)]
    if rows.empty:
        return text_figure(
            f"No personalised cell with head {shown_name(head)} and tuning {shown_name(tuning)} is compared."
        )
    clients = rows.drop_duplicates("client").sort_values("training", kind="stable")
    shown = [name for name in OTHERS if name in set(rows["against"])]
    step = max(len(shown) * ROW + GAP, LABEL)
    rules, colors = list(dict.fromkeys(rows["rule"])), cohort_colors(cohorts)
    columns = min(COLUMNS, len(rules))
    lines = -(-len(rules) // columns)
    figure = Figure(figsize=(PAGE, lines * (len(clients) * step + 0.75) + 0.55))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    limits = rows[["difference", "low", "high"]].abs().max().max()
    reach = 1.08 * max(0.1, 0.0 if pd.isna(limits) else float(limits))
    for number, (axes, rule) in enumerate(zip(panels, rules)):
        axes.set_title(f"{shown_name(rule)}\n", pad=2)
        axes.text(0.5, 1.02, "worse  |  better", transform=axes.transAxes, ha="center", color=GUIDE, fontsize=SMALL)
        _panel(axes, rows[rows["rule"] == rule], clients, shown, colors, step)
        axes.set_xlim(-reach, reach)
        if number >= len(rules) - columns:
            axes.set_xlabel("AUC of the own model minus the other's")
            axes.tick_params(axis="x", labelbottom=True)
    for axes in panels[len(rules) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], color=GUIDE, marker=OTHERS[name][0], label=OTHERS[name][1]) for name in shown]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=len(handles),
        title=f"{shown_name(head)}, {shown_name(tuning)}: own model of each client against",
        title_fontproperties={"weight": "bold", "size": 10},
        alignment="left",
    )
    footnotes(figure, _notes(rows, level))
    return figure


def _panel(axes, rows, clients, shown, colors, step):
    found = {(row["client"], row["against"]): row for row in rows.to_dict("records")}
    axes.axvline(0, color=GUIDE, linestyle=":", linewidth=1.2, zorder=1.5)
    axes.grid(axis="x")
    middles = [-step * place for place in range(len(clients))]
    for middle, client in zip(middles, clients["client"]):
        axes.axhline(middle - step / 2, color=RULE, linewidth=0.8, zorder=0)
        own = [found.get((client, name), {}) for name in shown]
        drawn = [row for row in own if not pd.isna(row.get("difference"))]
        if not drawn:
            axes.text(
                0, middle, _reason(own), ha="center", va="center", color=GUIDE, fontsize=SMALL, gid="reason", bbox=PAPER
            )
            continue
        for place, (name, row) in enumerate(zip(shown, own)):
            y = middle + ROW * ((len(shown) - 1) / 2 - place)
            if pd.isna(row.get("difference")):
                continue
            value = row["difference"]
            low, high = (value if pd.isna(row[limit]) else row[limit] for limit in ("low", "high"))
            color = colors[client]
            axes.errorbar(
                value,
                y,
                xerr=[[max(0, value - low)], [max(0, high - value)]],
                fmt=OTHERS[name][0],
                color=color,
                mfc="white" if _few(row) else color,
                elinewidth=1.2,
                capsize=2,
                gid=f"{client} {name}",
            )
    axes.set_yticks(middles, [_label(row) for row in clients.to_dict("records")])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(middles[-1] - step / 2, middles[0] + step / 2)


def _label(row) -> str:
    subjects, cases = int(row["subjects"]), int(row["positives"])
    return f"{shown_name(short_name(row['client'], 20))}\n{int(row['training'])} train\n{subjects} test ({cases} cases)"


def _few(row) -> bool:
    return min(row["positives"], row["negatives"]) < FEW


def _reason(rows) -> str:
    """Why a client has no difference, in few words: the notes are in the table."""
    notes = [row["note"] for row in rows if isinstance(row.get("note"), str)]
    if any("no model" in note for note in notes):
        return "no model of its own"
    return notes[0].split(":")[0] if notes else "not compared"


def _notes(rows, level) -> list[str]:
    notes = [
        f"Bars: {100 * level:g} % interval, paired bootstrap over test subjects; no correction for many comparisons."
    ]
    if any(_few(row) for row in rows.dropna(subset=["difference"]).to_dict("records")):
        notes.append(f"Hollow: fewer than {FEW} cases or controls in the test, limits are rough.")
    if (rows["low"] == rows["high"]).fillna(False).any():
        notes.append("No bar: the difference is the same in all resamples, which cannot show how uncertain it is.")
    borrowed = rows[(rows["against"] == "global") & ~rows["cell_b"].str.endswith(GLOBAL)]
    for rule, other in dict(zip(borrowed["rule"], borrowed["cell_b"])).items():
        notes.append(
            f"{shown_name(rule)} has no global model; the global model is that of {shown_name(other.split('/')[2])}."
        )
    return notes
