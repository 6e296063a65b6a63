"""ROC curves of the membership attacks on logarithmic axes, a row per cell, a panel per attack."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedbrain.figures.style import (
    GUIDE,
    PAGE,
    POOLED,
    SMALL,
    client_styles,
    footnotes,
    say,
    short_name,
    shown_name,
    styled,
    text_figure,
)

SHOWN = {"loss": "by the loss", "lira": "by the likelihood ratio"}
_CELL = ["head", "tuning", "aggregation", "seed"]


@styled
def membership(curves: pd.DataFrame, privacy: pd.DataFrame, *, cohorts: Sequence[str], level: float = 0.95) -> Figure:
    """Draws the share of members found over the share of non-members called members, for each client and all together.

    curves: table MEMBERSHIP_CURVES. privacy: table PRIVACY, from which come counts and the pooled AUC. Both axes are logarithmic, as in
    Carlini et al., IEEE S&P 2022: what counts is how many are told with few false alarms. A curve is drawn as steps, since between
    two thresholds there is none; where it starts at the left edge no non-member is called. cohorts: all of the study, in the order
    of the config.
    """
    cells = list(dict.fromkeys(privacy[_CELL].itertuples(index=False, name=None)))
    if not cells:
        return text_figure("No cell has been attacked.")
    styles = client_styles(cohorts)
    counts = privacy.drop_duplicates("client").set_index("client")[["members", "nonmembers"]].astype(int)
    least = min(0.05, 0.5 / max(1, counts[["members", "nonmembers"]].max().max()))
    drawn = set(curves["client"])
    legend = -(-(len(drawn) + 1) // 2)  # rows of it
    figure = Figure(figsize=(PAGE, 3.7 * len(cells) + 0.6 + 0.2 * legend))
    rows = figure.subplots(len(cells), len(SHOWN), squeeze=False, sharex=True, sharey=True)
    for cell, row in zip(cells, rows):
        own = (curves[_CELL] == list(cell)).all(axis=1)
        for attack, axes in zip(SHOWN, row):
            told = (privacy[_CELL] == list(cell)).all(axis=1) & (privacy["attack"] == attack)
            axes.set_title(f"{' / '.join(shown_name(name) for name in cell[:3])}\n{SHOWN[attack]}", fontsize=SMALL)
            _panel(axes, curves[own & (curves["attack"] == attack)], privacy[told], styles, least)
    for axes in rows[-1]:
        axes.set_xlabel("false-positive rate\n(non-members called members)")
    for axes in rows[:, 0]:
        axes.set_ylabel("true-positive rate\n(members found)")
    handles = [Line2D([], [], color=GUIDE, linestyle=":", linewidth=1.2, label="chance")]
    for client in [POOLED, *cohorts]:
        if client in drawn:
            style, n = styles[client], counts.loc[client]
            name = "Pooled" if client == POOLED else short_name(client)
            label = f"{name} ({n['members']} members, {n['nonmembers']} non-members)"
            handles.append(
                Line2D([], [], color=style.color, linestyle=style.line, linewidth=_width(client), label=label)
            )
    figure.legend(handles=handles, loc="outside upper center", ncols=2, columnspacing=1.6)
    absent = [short_name(client) for client in cohorts if client not in drawn]
    note = f"Logarithmic axes. AUC with its {100 * level:g} % bootstrap interval over subjects."
    if absent:
        note += f" No curve without members and non-members: {', '.join(absent)}."
    footnotes(figure, [note])
    return figure


def _panel(axes, curves, rows, styles, least):
    axes.set_box_aspect(1)
    if curves.empty:
        return say(axes, next(iter(rows["note"].dropna()), "no curve"), width=28)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, limits in ((axes.xaxis, axes.set_xlim), (axes.yaxis, axes.set_ylim)):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        limits(least, 1.15)
    guide = np.array([least, 1])
    axes.plot(guide, guide, color=GUIDE, linestyle=":", linewidth=1.2, zorder=1)
    for client in [name for name in styles if name in set(curves["client"])]:
        own = curves[curves["client"] == client]
        fpr, tpr = (own[name].astype(float).clip(lower=least / 10) for name in ("fpr", "tpr"))
        style = styles[client]
        look = {"color": style.color, "linestyle": style.line, "linewidth": _width(client), "gid": client}
        axes.step(fpr, tpr, where="post", zorder=3 if client == POOLED else 2, **look)
    pooled = rows[(rows["client"] == POOLED) & (rows["metric"] == "auc")]
    if len(pooled) and not pd.isna(pooled["value"].iloc[0]):
        row = pooled.iloc[0]
        text = f"pooled AUC {row['value']:.2f}" + (
            "" if pd.isna(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
        )
        ground = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5}
        axes.text(0.98, 0.03, text, ha="right", va="bottom", fontsize=SMALL, transform=axes.transAxes, bbox=ground)
    return None


def _width(client):
    return 2.2 if client == POOLED else 1.3
