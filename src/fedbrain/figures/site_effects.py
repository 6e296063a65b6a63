"""What of an embedding is its hospital: scans on two axes, variance between cohorts, and how well the cohort can be told."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from fedbrain.figures.style import (
    COLORS,
    GUIDE,
    LINES,
    PAGE,
    RULE,
    SMALL,
    cohort_styles,
    footnotes,
    say,
    short_name,
    styled,
    text_figure,
)

ALL, HELD_OUT, CONTROLS, NONE = "all", "held out", "controls", "none"  # as in fedbrain.evaluation.site_effects
NAMES = {
    "mean": "channel means",
    "spread": "channel spreads",
    "quality": "scan quality",
    "age and sex": "age and sex alone",
}
UPPER, ROW = 2.9, 0.34  # inches


@styled
def site_effects(
    told: pd.DataFrame,
    variance: pd.DataFrame,
    projection: pd.DataFrame,
    cohorts: Sequence[str],
    *,
    class_names: Sequence[str] = ("control", "case"),
    level: float = 0.95,
) -> Figure:
    """Draws three views of how much an embedding says about the cohort that it comes from.

    told, variance, projection: tables SITE_EFFECTS, SITE_VARIANCE and SITE_PROJECTION. cohorts: all of them in the order of the
    config. Above: each person's first scan on the two directions of largest variance, where a harmonization was fitted before and
    after it, on the scans that it was not fitted on; and the distribution over channels of the variance between cohorts. Below:
    balanced accuracy of telling the cohort, of all scans and of controls alone, with chance; harmonized features stand with
    the validation and test scans, which the harmonization was not fitted on.
    """
    lines = _lines(told)
    if not lines:
        return text_figure("The cohort was not told from anything: fewer than two cohorts have two persons each.")
    harmonized = [name for name in projection["harmonization"].unique() if name != NONE]
    shown = [NONE, *harmonized[:1]]
    dots = ROW * len(lines) + 0.5
    figure = Figure(figsize=(PAGE, UPPER + dots + 0.55))
    above, below = figure.subfigures(2, 1, height_ratios=[UPPER, dots + 0.55])
    panels = above.subplots(1, len(shown) + 1)
    _scatter(panels[:-1], projection, shown, cohorts)
    _distribution(panels[-1], variance, shown)
    handles = [
        Line2D([], [], color=style.color, marker=style.marker, linestyle="none", label=short_name(name, 20))
        for name, style in cohort_styles(cohorts).items()
    ]
    marks = {"color": GUIDE, "marker": "o", "linestyle": "none"}
    handles += [
        Line2D([], [], **marks, label=class_names[0]),
        Line2D([], [], **marks, markerfacecolor="white", label=class_names[1]),
    ]
    above.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)), columnspacing=1.2)
    _told(below, lines, level)
    footnotes(figure, _notes(told))
    return figure


def _notes(told) -> list[str]:
    """What the table remarks, each remark once for the scans that it is about, with the features."""
    notes = []
    for (side, label, note), own in told.dropna(subset=["note"]).groupby(["side", "label", "note"], sort=False):
        names = ", ".join(NAMES.get(name, name) for name in own["features"].unique())
        scans = ("validation and test scans" if side == HELD_OUT else "all scans") + (
            " of controls" if label == CONTROLS else ""
        )
        notes.append(f"{names}, {scans}: {note}.")
    return notes


def _lines(told) -> list[tuple[str, dict]]:
    """Label and rows, by label of the scans, of everything that was measured; a heading has no rows."""
    rows = told[(told["metric"] == "balanced_accuracy") & told["value"].notna()]
    lines = []
    for side, heading in ((ALL, "all scans"), (HELD_OUT, "validation and test scans")):
        mine = rows[rows["side"] == side]
        if mine.empty:
            continue
        if rows["side"].nunique() > 1:
            lines.append((heading, {}))
        for (features, harmonization), own in mine.groupby(["features", "harmonization"], sort=False):
            name = NAMES.get(features, features)
            if side == HELD_OUT:
                name += f", {_title(harmonization)}"
            lines.append((name, {row["label"]: row for row in own.to_dict("records")}))
    # Each set of features together, before and after.
    order = list(NAMES.values())
    head = [k for k, (_, found) in enumerate(lines) if not found]
    last = head[-1] if len(head) > 1 else len(lines)
    tail = sorted(lines[last + 1 :], key=lambda line: order.index(line[0].split(",")[0]))
    return lines[: last + 1] + tail


def _title(harmonization: str) -> str:
    return "as computed" if harmonization == NONE else harmonization


def _scatter(panels, projection, shown, cohorts):
    points = projection[projection["harmonization"].isin(shown)]
    if len(shown) > 1:
        points = points[points["split"] != "train"]
    for axes, name in zip(panels, shown):
        own = points[points["harmonization"] == name]
        axes.set_title(_title(name))
        if own.empty:
            say(axes, "no validation or test scan", width=20)
            continue
        for cohort, style in cohort_styles(cohorts).items():
            for label, fill in ((0, style.color), (1, "white")):
                part = own[(own["cohort"] == cohort) & (own["label"] == label)]
                axes.plot(
                    part["first"],
                    part["second"],
                    linestyle="none",
                    marker=style.marker,
                    color=style.color,
                    markerfacecolor=fill,
                    markersize=4.5 if len(own) < 300 else 2.5,
                    markeredgewidth=0.9,
                    alpha=0.85,
                )
        share = own[["first_share", "second_share"]].iloc[0]
        axes.set_xlabel(f"direction 1 ({share['first_share']:.0%} of variance)")
        axes.set_ylabel(f"direction 2 ({share['second_share']:.0%})")
        axes.set_xticks([])
        axes.set_yticks([])
    both = points[["first", "second"]].to_numpy(float)
    if len(both):
        room = 0.06 * np.ptp(both, axis=0) + 1e-9
        for axes in panels:
            axes.set_xlim(both[:, 0].min() - room[0], both[:, 0].max() + room[0])
            axes.set_ylim(both[:, 1].min() - room[1], both[:, 1].max() + room[1])


def _distribution(axes, variance, shown):
    """Share of channels with less than a given share of variance between cohorts, of all persons alike."""
    side = HELD_OUT if len(shown) > 1 else ALL
    mine = variance[(variance["side"] == side) & (variance["label"] == ALL) & variance["omega_squared"].notna()]
    mine = mine[mine["harmonization"].isin(shown)]
    axes.set_title("variance between cohorts")
    if mine.empty:
        return say(axes, "too few persons", width=20)
    # Before a harmonization means and spreads; with one, means before and after it, named as the panels beside it.
    for (features, harmonization), own in mine.groupby(["features", "harmonization"], sort=False):
        label = NAMES[features].removeprefix("channel ")
        if len(shown) > 1:
            label = _title(harmonization)
        found = np.sort(own["omega_squared"].to_numpy(float))
        color, line = COLORS[features == "spread"], LINES[shown.index(harmonization)]
        axes.plot(found, np.arange(1, len(found) + 1) / len(found), color=color, linestyle=line, label=label)
    axes.axvline(0, color=GUIDE, linestyle=":", linewidth=1.2)
    axes.set_xlabel("omega squared (0 by chance)")
    axes.set_ylabel("share of channels below")
    axes.set_ylim(0, 1)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.24), ncols=2, handlelength=1.6, columnspacing=1)


def _told(figure, lines, level):
    axes = figure.subplots()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(lines) - 0.5, -0.6)
    axes.spines["left"].set_visible(False)
    numbers = axes.get_yaxis_transform()
    axes.text(1.03, -0.72, "all scans / controls", transform=numbers, fontsize=SMALL, color=GUIDE)
    for place, (_, rows) in enumerate(lines):
        if not rows:
            axes.axhline(place + 0.5, color=RULE, linewidth=0.8, zorder=0)
            continue
        texts = []
        for label, offset, fill in ((ALL, -0.14, "black"), (CONTROLS, 0.14, "white")):
            row = rows.get(label)
            texts.append("–" if row is None else f"{row['value']:.2f}")
            if row is None:
                continue
            if not pd.isna(row["low"]):
                axes.plot([row["low"], row["high"]], [place + offset] * 2, color="black", linewidth=1.1)
            dot = {"marker": "D", "color": "black", "markerfacecolor": fill, "linestyle": "none", "markersize": 5}
            axes.plot(row["value"], place + offset, **dot, zorder=3, clip_on=False)
            axes.plot([row["chance"]] * 2, [place - 0.42, place + 0.42], color=GUIDE, linestyle=":", linewidth=1.4)
        axes.text(1.03, place, " / ".join(texts), transform=numbers, va="center", fontsize=SMALL)
    axes.set_yticks(range(len(lines)), [label for label, _ in lines])
    axes.tick_params(axis="y", length=0)
    for tick, (_, rows) in zip(axes.get_yticklabels(), lines):
        tick.set_fontweight("normal" if rows else "bold")
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    axes.grid(axis="x")
    axes.set_title("how well the cohort can be told")
    axes.set_xlabel(f"cross-validated balanced accuracy, {100 * level:g} % interval over persons")
    marks = {"color": "black", "marker": "D", "linestyle": "none", "markersize": 5}
    handles = [
        Line2D([], [], **marks, label="all scans"),
        Line2D([], [], **marks, markerfacecolor="white", label="controls alone"),
        Line2D([], [], color=GUIDE, linestyle=":", linewidth=1.4, label="chance"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
