"""The AUC of every cell on cohorts that it has never seen, beside the model that was trained with them."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from fedbrain.evaluation.reported import interval_words, reported_auc
from fedbrain.figures.style import (
    GUIDE,
    PAGE,
    POOLED_COLOR,
    POOLED_MARKER,
    RULE,
    SMALL,
    auc_floor,
    cohort_colors,
    footnotes,
    short_name,
    shown_name,
    styled,
    text_figure,
)

ROW = 0.46  # inches
MEAN = "mean"
CELL = ["head", "tuning", "aggregation"]
# What is drawn of a cohort: tested on, by which model, how far below the row's middle, marker, filled.
POINTS = (
    ("test", "seen", -0.26, "o", True),
    ("test", "unseen", 0.0, "o", False),
    ("all", "unseen", 0.26, "s", False),
)


@styled
def transfer(table: pd.DataFrame, cohorts: list[str], *, level: float = 0.95) -> Figure:
    """Draws, for each cell a block and for each cohort a row, the AUC of the model that has seen the cohort and of those that have not.

    table: TRANSFER. cohorts: all of the study, for their colours. level: of the intervals. Filled: trained with the cohort;
    hollow: trained without it, on the same test subjects (circle, joined by a line) and on all its subjects (square). The last row of a
    block is the mean over cohorts that were left out, thin its prediction interval. Beside each row stands the difference
    with its interval.
    """
    own = table[table["metric"].isin(["auc", "auc_delong"]) & (table["cohort"] != MEAN)]
    if own.empty:
        return text_figure("No cell was tested on a cohort that it has never seen.")
    aucs = pd.concat(
        [
            reported_auc(part.rename(columns={"cohort": "client"}))
            for _, part in own[own["model"] != "difference"].groupby(["tested", "model"], sort=False)
        ],
        ignore_index=True,
    ).rename(columns={"client": "cohort"})
    # Of a cell whose clients have models of their own there is none for a stranger: nothing to draw.
    unseen = aucs[(aucs["model"] == "unseen") & aucs["value"].notna()]
    known = pd.MultiIndex.from_frame(unseen[CELL])
    nothing = aucs.loc[~pd.MultiIndex.from_frame(aucs[CELL]).isin(known), "aggregation"].unique()
    aucs, table = (of[pd.MultiIndex.from_frame(of[CELL]).isin(known)] for of in (aucs, table))
    if aucs.empty:
        return text_figure("No cell has an AUC on a cohort that it has never seen.")
    means = table[(table["cohort"] == MEAN) & (table["metric"] == "auc")]
    differences = table[(table["model"] == "difference") & (table["metric"] == "auc")]
    lines = _lines(aucs, means)
    figure = Figure(figsize=(PAGE, ROW * len(lines) + 1.3))
    axes = figure.subplots()
    reach = means[means["model"] != "difference"].rename(columns={"prediction_low": "low", "low": "own"})
    floor = auc_floor(pd.concat([aucs[["value", "low"]], reach[["value", "low"]]]))
    axes.set_xlim(floor, 1.0)
    axes.set_ylim(len(lines) - 0.4, -0.8)
    axes.spines["left"].set_visible(False)
    axes.axvline(0.5, color=GUIDE, linestyle=":", linewidth=1.2, zorder=1.5)
    beside = axes.get_yaxis_transform()
    if len(differences):
        axes.text(1.02, -0.7, "unseen − seen", transform=beside, fontsize=SMALL, color=GUIDE)
    colors = cohort_colors(cohorts)
    for place, (_, cell, cohort) in enumerate(lines):
        if cohort is None:
            axes.axhline(place - 0.5, color=RULE, linewidth=0.8, zorder=0)
            continue
        rows = _of(means if cohort == MEAN else aucs, cell, cohort)
        _points(axes, place, rows, POOLED_COLOR if cohort == MEAN else colors[cohort], mean=cohort == MEAN)
        _difference(axes, place, _of(differences, cell, cohort))
    axes.set_yticks(range(len(lines)), [text for text, _, _ in lines])
    axes.tick_params(axis="y", length=0)
    for label, (_, _, cohort) in zip(axes.get_yticklabels(), lines):
        label.set_fontweight("bold" if cohort is None else "normal")
    axes.xaxis.set_major_locator(MultipleLocator(0.1))
    axes.grid(axis="x")
    axis = f" (axis starts at {floor:g})" if floor else ""
    axes.set_xlabel(f"AUC, {interval_words(aucs, level)}{axis}")
    figure.legend(handles=_handles(aucs, means), loc="outside upper center", ncols=2, columnspacing=1.4)
    absent = [f"Without an AUC on such a cohort: {', '.join(map(shown_name, nothing))}."] if len(nothing) else []
    footnotes(figure, absent + _notes(aucs, means))
    return figure


def _lines(aucs, means) -> list[tuple]:
    """What stands in each row: its label, the cell, and the cohort; a heading has none."""
    lines = []
    for cell, block in aucs.groupby(CELL, sort=False):
        lines.append((", ".join(map(shown_name, cell)), cell, None))
        for cohort, rows in block.groupby("cohort", sort=False):
            name = short_name(cohort) + (" (external)" if rows["kind"].iloc[0] == "external" else "")
            lines.append((f"{name}\n{_counted(rows)}", cell, cohort))
        mean = _of(means, cell, MEAN)
        if mean["value"].notna().any():
            lines.append((f"mean of {int(mean['cohorts'].max())} cohorts\nrandom effects", cell, MEAN))
    return lines


def _counted(rows) -> str:
    """``test 12 (5 cases), all 40 (17)``."""
    texts = []
    for tested in ("test", "all"):
        mine = rows[rows["tested"] == tested]
        if len(mine):
            # By the unseen model where there is one: a client without predictions has no subject in its row.
            first = mine.loc[mine["subjects"].idxmax()]
            cases = int(first["positives"])
            what = f"{cases} case{'s' * (cases != 1)}" if not texts else f"{cases}"
            texts.append(f"{tested} {int(first['subjects'])} ({what})")
    return ", ".join(texts)


def _of(table, cell, cohort):
    return table[(table[CELL] == list(cell)).all(axis=1) & (table["cohort"] == cohort)]


def _points(axes, place, rows, color, *, mean):
    """The AUCs of one row with their intervals, seen and unseen joined."""
    joined = []
    for tested, model, below, marker, filled in POINTS:
        found = rows[(rows["tested"] == tested) & (rows["model"] == model) & rows["value"].notna()]
        if found.empty:
            continue
        row, height = found.iloc[0], place + below
        if mean:
            marker = POOLED_MARKER if tested == "test" else marker
            if pd.notna(row["prediction_low"]):
                reach = [row["prediction_low"], row["prediction_high"]]
                axes.plot(reach, [height, height], color=color, linewidth=0.6, gid="prediction")
        if pd.notna(row["low"]):
            axes.plot([row["low"], row["high"]], [height, height], color=color, linewidth=1.3, gid="interval")
            axes.plot(
                [row["low"], row["high"]], [height, height], color=color, marker="|", markersize=5, linestyle="none"
            )
        axes.plot(
            row["value"], height, marker=marker, color=color, mfc=color if filled else "white", linestyle="none",
            clip_on=False, zorder=3, gid=f"{model} {tested}",
        )  # fmt: skip
        if tested == "test":
            joined.append((row["value"], height))
    if len(joined) == 2:
        axes.plot(*zip(*joined), color=color, linewidth=0.9, linestyle="--", zorder=2, gid="joined")


def _difference(axes, place, rows):
    if rows.empty or pd.isna(rows["value"].iloc[0]):
        return
    row = rows.iloc[0]
    text = f"{row['value']:+.2f}"
    if pd.notna(row["low"]) and row["low"] < row["high"]:  # without a width it says nothing
        text += f" [{row['low']:+.2f}, {row['high']:+.2f}]"
    text = text.replace("-", "−").replace("+0.00", "0.00").replace("−0.00", "0.00")
    axes.text(
        1.02, place - 0.13, text, transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL, gid="difference"
    )


def _handles(aucs, means):
    known = set(map(tuple, aucs.loc[aucs["value"].notna(), ["tested", "model"]].to_numpy()))
    words = {
        ("test", "seen"): "trained with the cohort, its test subjects",
        ("test", "unseen"): "never saw it, the same test subjects",
        ("all", "unseen"): "never saw it, all its subjects",
    }
    handles = [
        Line2D(
            [],
            [],
            color=GUIDE,
            marker=marker,
            mfc=GUIDE if filled else "white",
            linewidth=1.2,
            label=words[tested, model],
        )
        for tested, model, _, marker, filled in POINTS
        if (tested, model) in known
    ]
    if means["value"].notna().any():
        handles.append(
            Line2D(
                [],
                [],
                color=POOLED_COLOR,
                marker=POOLED_MARKER,
                linewidth=1.2,
                label="mean (thin: prediction interval)",
            )
        )
    return [*handles, Line2D([], [], color=GUIDE, linestyle=":", linewidth=1.2, label="chance (0.5)")]


def _notes(aucs, means) -> list[str]:
    """What the table says of the rows, each remark once with the cohorts that it is about."""
    about: dict[str, list[str]] = {}
    for row in aucs.dropna(subset=["note"]).to_dict("records"):
        about.setdefault(row["note"], []).append(row["cohort"])
    notes = [f"{', '.join(dict.fromkeys(names))}: {note}." for note, names in about.items()]
    about = {}
    for row in means.dropna(subset=["note"]).to_dict("records"):
        about.setdefault(row["note"], []).append(f"{row['model']}, {row['tested']}")
    return notes + [f"Mean ({'; '.join(dict.fromkeys(names))}): {note}." for note, names in about.items()]
