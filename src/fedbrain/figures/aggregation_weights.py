"""Contribution weight of each client by round, for the rules that choose weights."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fedbrain.figures.style import GUIDE, PAGE, cohort_styles, say, shown_name, styled

RULES = ("fedce", "rate_my_lora")


@styled
def aggregation_weights(
    rounds: pd.DataFrame,
    cohorts: Sequence[str],
    *,
    scans: Mapping[str, int] | None = None,
    rules: Sequence[str] = RULES,
) -> Figure:
    """Draws the weight that each client's update had in each round: the mean over seeds, and each seed as a thin line.

    rounds: columns aggregation, seed, round, client, weight (of one head and tuning). cohorts: all cohorts in the order
    of the config. scans: training scans of each cohort; where given, triangles at the right edge show the weights of
    FedAvg, n_k/N; the dotted line is the weight of SimpleAvg, 1/K. A rule without rounds says so in its panel.
    """
    styles = cohort_styles(cohorts)
    figure = Figure(figsize=(PAGE, 3.3))
    panels = figure.subplots(1, len(rules), sharey=True, squeeze=False)[0]
    rounds = rounds.dropna(subset=["weight"])
    clients = [cohort for cohort in cohorts if cohort in set(rounds.loc[rounds["aggregation"].isin(rules), "client"])]
    drawn, tops = [], []
    for axes, rule in zip(panels, rules):
        axes.set_title(shown_name(rule))
        own = rounds[rounds["aggregation"] == rule]
        if own.empty:
            say(axes, f"no rounds of {shown_name(rule)}")
            continue
        drawn.append(axes)
        tops.append(_panel(axes, own, clients, styles, scans))
    if not drawn:
        return figure
    drawn[0].set_ylabel("contribution weight")
    drawn[0].set_ylim(0, max(tops))  # the panels share it
    handles = [
        drawn[0].plot([], [], color=styles[c].color, linestyle=styles[c].line, marker=styles[c].marker, label=c)[0]
        for c in clients
    ]
    handles.append(drawn[0].plot([], [], color=GUIDE, linestyle=":", linewidth=1.2, label="1/K (SimpleAvg)")[0])
    if scans:
        handles.append(drawn[0].plot([], [], color=GUIDE, linestyle="none", marker="<", label="$n_k/N$ (FedAvg)")[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    return figure


def _panel(axes, own, clients, styles, scans):
    table = own.pivot_table(index="round", columns=["client", "seed"], values="weight", aggfunc="mean").astype(float)
    table = table.reindex(range(int(table.index.min()), int(table.index.max()) + 1))  # a missing round is a gap
    seeds = own["seed"].nunique()
    marked = max(1, len(table) // 8)
    for client in clients:
        if client not in table.columns.get_level_values("client"):
            continue
        style, by_seed = styles[client], table[client]
        if seeds > 1:
            axes.plot(by_seed.index, by_seed.to_numpy(), color=style.color, linewidth=0.6, alpha=0.45)
        axes.plot(
            by_seed.index,
            by_seed.mean(axis=1).to_numpy(),
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            markevery=marked,
            linewidth=2,
        )
    axes.axhline(1 / len(clients), color=GUIDE, linestyle=":", linewidth=1.2, zorder=1.5)
    first, last = table.index.min(), table.index.max()
    room = max(0.5, 0.04 * (last - first))
    axes.set_xlim(first - room, last + room * (3 if scans else 1))
    if scans:
        total = sum(scans[client] for client in clients)
        for client in clients:
            axes.plot(
                last + 2 * room,
                scans[client] / total,
                marker="<",
                color=styles[client].color,
                markersize=8,
                markeredgecolor="white",
                markeredgewidth=0.7,
                clip_on=False,
                linestyle="none",
            )
    axes.set_xlabel(f"round (mean and {seeds} seeds)" if seeds > 1 else "round")
    axes.set_xticks(range(int(first), int(last) + 1, max(1, -(-len(table) // 10))))
    highest = np.nanmax(table.to_numpy())
    if scans:
        highest = max(highest, max(scans[client] for client in clients) / total)
    axes.grid(axis="y")
    return max(1.08 * highest, 1.3 / len(clients))
