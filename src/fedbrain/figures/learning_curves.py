"""Learning curves: training and validation loss of each client by round, and the round that was chosen."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedbrain.figures.style import GUIDE, PAGE, RULE, client_styles, short_name, shown_name, styled, text_figure

LOSSES = {"loss": "training loss", "validation_loss": "validation loss"}


@styled
def learning_curves(
    rounds: pd.DataFrame,
    cohorts: Sequence[str],
    *,
    best_rounds: Mapping[tuple[str, int], Mapping[str, int]],
    scans: Mapping[str, int] | None = None,
) -> Figure:
    """Draws the losses of one head and tuning, a row per aggregation: training on the left, validation on the right.

    rounds: table ROUNDS with columns aggregation and seed. cohorts: all cohorts in the order of the config. best_rounds: for
    an aggregation and seed the chosen round under "global", "pooled" or, for local training, the client. scans: training
    scans of each cohort. Seeds are thin lines and their mean is thick. The chosen round of each seed is a marker on the
    client's validation loss; clients without validation scans have no line there.
    """
    aggregations = list(dict.fromkeys(rounds["aggregation"]))
    if not aggregations:
        return text_figure("No cell has been trained.")
    styles = client_styles(cohorts)
    figure = Figure(figsize=(PAGE, 1.5 * len(aggregations) + 1.0))
    panels = figure.subplots(len(aggregations), 2, squeeze=False, sharex="row")
    for row, (pair, aggregation) in enumerate(zip(panels, aggregations)):
        own = rounds[rounds["aggregation"] == aggregation]
        for axes, column in zip(pair, LOSSES):
            _panel(axes, own, column, styles)
            axes.set_title(f"{shown_name(aggregation)}: {LOSSES[column]}")
            axes.margins(y=0.12)
            axes.grid(axis="y")
            if row == len(aggregations) - 1:
                axes.set_xlabel("round")
        chosen = {seed: best for (name, seed), best in best_rounds.items() if name == aggregation}
        _choice(pair[1], own, chosen, styles)
    for column in range(2):
        _same_scale([axes for axes in panels[:, column] if axes.lines])
    figure.supylabel("mean cross-entropy per scan", fontsize=9.5)
    clients = [client for client in styles if client in set(rounds["client"])]
    figure.legend(
        handles=[*(_handle(client, styles[client], scans) for client in clients), *_kinds(rounds)],
        loc="outside upper center",
        ncols=3,
    )
    return figure


def _panel(axes, own, column, styles):
    table = own.pivot_table(index="round", columns=["client", "seed"], values=column, aggfunc="mean").astype(float)
    first, last = int(own["round"].min()), int(own["round"].max())
    table = table.reindex(range(first, last + 1))  # a missing round is a gap
    single = last == first
    for client, style in styles.items():
        if client not in table.columns.get_level_values("client"):
            continue
        by_seed = table[client]
        if by_seed.shape[1] > 1:
            axes.plot(by_seed.index, by_seed.to_numpy(), color=style.color, linewidth=0.6, alpha=0.45, gid="seed")
        axes.plot(
            by_seed.index,
            by_seed.mean(axis=1).to_numpy(),
            color=style.color,
            linestyle=style.line,
            marker=style.marker if single else None,
            linewidth=1.8,
            gid="mean",
        )
    if not axes.lines:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GUIDE)
    room = max(0.5, 0.03 * (last - first))
    axes.set_xlim(first - room, last + room)
    axes.set_xticks(range(first, last + 1, max(1, -(-(last - first + 1) // 8))))


def _choice(axes, own, chosen, styles):
    """A marker on each client's validation loss in the round that was chosen, for every seed."""
    for seed, best in chosen.items():
        of_seed = own[own["seed"] == seed].dropna(subset=["validation_loss"])
        for row in of_seed.itertuples():
            wanted = best.get(row.client, best.get("global"))
            if row.round == wanted and row.client in styles:
                axes.plot(
                    row.round,
                    row.validation_loss,
                    marker=styles[row.client].marker,
                    color=styles[row.client].color,
                    mec="black",
                    mew=0.8,
                    markersize=6.5,
                    linestyle="none",
                    zorder=3,
                    gid="chosen",
                )
    for number in sorted({best["global"] for best in chosen.values() if "global" in best}):
        axes.axvline(number, color=RULE, linewidth=1.2, zorder=0)


def _same_scale(panels):
    """One y axis for all panels of a column, from 0, so that rows can be compared."""
    values = [np.asarray(line.get_ydata(), float) for axes in panels for line in axes.lines if line.get_gid()]
    highest = max((np.nanmax(y) for y in values if np.isfinite(y).any()), default=1.0)
    for axes in panels:
        axes.set_ylim(0, 1.08 * highest)


def _handle(client, style, scans):
    name = shown_name(short_name(client, 22))
    if client == "pooled":
        name = "all scans pooled"
    elif scans and client in scans:
        name += f" ({scans[client]} training scans)"
    return Line2D([], [], color=style.color, linestyle=style.line, marker=style.marker, markersize=4.5, label=name)


def _kinds(rounds):
    kinds = [Line2D([], [], color=GUIDE, marker="o", mec="black", linestyle="none", label="chosen round, by seed")]
    if rounds["seed"].nunique() > 1:
        kinds.append(Line2D([], [], color=GUIDE, linewidth=1.8, label="mean of seeds"))
        kinds.append(Line2D([], [], color=GUIDE, linewidth=0.6, label="one seed"))
    return kinds
