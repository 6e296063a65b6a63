"""ROC curves of the heads with bootstrap bands, all test subjects together."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fedbrain.evaluation.reported import DELONG, FEW, reported_auc
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
def roc_curves(curves: pd.DataFrame, performance: pd.DataFrame, *, level: float = 0.95) -> Figure:
    """Draws a panel per cell: sensitivity over 1 - specificity, the mean over seeds with its band, and each seed.

    curves: as :func:`fedbrain.evaluation.roc.roc_curves` gives them. performance: table PERFORMANCE, from which come the
    AUCs in the panels and the counts on the axes. level: of bands and intervals. A cell without a curve says why.
    """
    cells = list(dict.fromkeys(zip(*(curves[name] for name in _CELL))))
    if not cells:
        return text_figure("No cell has been evaluated.")
    aucs = reported_auc(performance)
    aucs = aucs[aucs["client"] == POOLED].drop_duplicates(_CELL).set_index(_CELL)
    columns = min(COLUMNS, max(2, len(cells)))
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(PAGE, PAGE / columns * 1.12 * rows + 0.75))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, cell in zip(panels, cells):
        own = curves[(curves[_CELL] == list(cell)).all(axis=1)]
        axes.set_title(f"{shown_name(cell[0])}\n{shown_name(cell[1])}, {shown_name(cell[2])}", fontsize=SMALL)
        row = aucs.loc[cell].to_dict() if cell in aucs.index else {}
        _panel(axes, own, row)
    for axes in panels[len(cells) :]:
        axes.set_axis_off()
    cases = controls = ""
    if len(aucs):
        first = aucs.iloc[0]
        cases, controls = f"\n({int(first['positives'])} cases)", f"\n({int(first['negatives'])} controls)"
    for number, axes in enumerate(panels[: len(cells)]):
        if number >= len(cells) - columns:
            axes.set_xlabel(f"1 - specificity{controls}")
            axes.xaxis.set_tick_params(labelbottom=True)
        if number % columns == 0:
            axes.set_ylabel(f"sensitivity{cases}")
    several = curves["seed"].nunique() > 1
    handles = [
        Line2D([], [], color=COLORS[0], linewidth=1.8, label="mean of seeds" if several else "curve"),
        Patch(color=COLORS[0], alpha=0.2, linewidth=0, label=f"pointwise {100 * level:g} % band over subjects"),
        Line2D([], [], color=GUIDE, linestyle=":", linewidth=1.2, label="chance"),
    ]
    if several:
        handles.insert(1, Line2D([], [], color=COLORS[0], linewidth=0.6, alpha=0.6, label="one seed"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.4)
    if len(aucs) and (aucs["interval"] == DELONG).any():
        footnotes(figure, [f"* DeLong's interval, since a class has fewer than {FEW} subjects."])
    return figure


def _panel(axes, own, row):
    axes.set_box_aspect(1)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.5, 1], ["0", "0.5", "1"])
    mean = own[own["seed"].isna()]
    if mean["tpr"].isna().all():
        note = row.get("note")
        return say(axes, "no curve" if note is None or pd.isna(note) else note, width=22)
    axes.plot([0, 1], [0, 1], color=GUIDE, linestyle=":", linewidth=1.2, zorder=1)
    axes.fill_between(mean["fpr"], mean["low"], mean["high"], color=COLORS[0], alpha=0.2, linewidth=0, gid="band")
    seeds = own.dropna(subset=["seed"])
    if seeds["seed"].nunique() > 1:
        for _, curve in seeds.groupby("seed"):
            axes.plot(curve["fpr"], curve["tpr"], color=COLORS[0], linewidth=0.6, alpha=0.6, gid="seed")
    axes.plot(mean["fpr"], mean["tpr"], color=COLORS[0], linewidth=1.8, gid="mean")
    if row and not pd.isna(row["value"]):
        text = f"AUC {row['value']:.2f}"
        if not pd.isna(row["low"]):
            text += f"\n[{row['low']:.2f}, {row['high']:.2f}]" + ("*" if row["interval"] == DELONG else "")
        ground = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5}
        axes.text(0.98, 0.04, text, ha="right", va="bottom", fontsize=SMALL, linespacing=1.2, bbox=ground)
    return None
