"""What travels: the ratio of parameters by which methods are compared, against the bytes that were really sent."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fedbrain.figures.auc_by_cost import in_bytes
from fedbrain.figures.style import (
    COLORS,
    GUIDE,
    PAGE,
    POOLED_COLOR,
    RULE,
    SMALL,
    footnotes,
    shown_name,
    styled,
    text_figure,
)

ROW = 0.29  # inches
APART = 0.28  # of a row: the two directions stand above and below the ratio, so that equal ones can be told
FLOAT32 = 4  # bytes

_RATIO = {"marker": "D", "color": POOLED_COLOR, "mfc": "white", "linestyle": "none", "zorder": 3}
_DOWN = {"marker": "v", "ms": 4.8, "color": COLORS[0], "linestyle": "none", "zorder": 4}
_UP = {"marker": "^", "ms": 4.8, "color": COLORS[1], "linestyle": "none", "zorder": 4}
_BOTH = {"marker": "o", "color": POOLED_COLOR, "linestyle": "none", "zorder": 4}


@styled
def communication(efficiency: pd.DataFrame) -> Figure:
    """Draws what a client exchanges for each cell, a row each, in blocks of one head and tuning, on log axes.

    efficiency: table EFFICIENCY. Left, per round, as a share of the whole model: the parameters that travel (``sent_share``, what is
    reported of FLAP-SAM, Asokan et al., arXiv 2407.21739) and the bytes down and up. Right, the whole run: what that count of
    parameters makes of it (float32, one direction, all rounds, as published there), the bytes both ways, and how many times more those are.
    Cells that send nothing are left out and named.
    """
    sending = efficiency[efficiency["bytes_run"] > 0]
    if sending.empty:
        return text_figure("No cell sends anything.")
    lines = []  # (label, row); a heading has no row
    for (head, tuning), block in sending.groupby(["head", "tuning"], sort=False):
        lines.append((f"{shown_name(head)}, {shown_name(tuning)}", None))
        lines += [(shown_name(row["aggregation"]), row) for row in block.to_dict("records")]
    figure = Figure(figsize=(PAGE, ROW * len(lines) + 1.5))
    share, run = figure.subplots(1, 2, sharey=True)
    for place, (_, row) in enumerate(lines):
        if row is None:
            for axes in (share, run):
                axes.axhline(place - 0.5, color=RULE, linewidth=0.8, zorder=0)
        else:
            _share(share, place, row)
            _run(run, place, row)
    _scale(share, sending[["sent_share"]].to_numpy(), _shares(sending), _percent)
    _scale(run, _counted(sending), sending["bytes_run"], in_bytes)
    share.set_xlabel("per round, of the whole model (log)")
    run.set_xlabel("whole run, per client (log)")
    share.set_ylim(len(lines) - 0.4, -0.8)
    share.set_yticks(range(len(lines)), [label for label, _ in lines])
    for label, (_, row) in zip(share.get_yticklabels(), lines):
        label.set_fontweight("bold" if row is None else "normal")
    for axes in (share, run):
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
    run.text(1.02, -0.7, "bytes : count", transform=run.get_yaxis_transform(), fontsize=SMALL, color=GUIDE)
    handles = [
        Line2D([], [], label="count of parameters", **_RATIO),
        Line2D([], [], label="bytes down", **_DOWN),
        Line2D([], [], label="bytes up", **_UP),
        Line2D([], [], label="bytes both ways", **_BOTH),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, columnspacing=1.4)
    footnotes(figure, _notes(efficiency, sending))
    return figure


def _share(axes, place, row):
    whole = row["full_bytes"]
    down, up = row["bytes_down"] / whole, row["bytes_up"] / whole
    values = [value for value in (row["sent_share"], down, up) if value > 0]
    axes.plot([min(values), max(values)], [place, place], color=GUIDE, linewidth=1, zorder=2)
    if row["sent_share"] > 0:
        axes.plot(row["sent_share"], place, gid="count", **_RATIO)
    if down > 0:
        axes.plot(down, place + APART, gid="down", **_DOWN)
    if up > 0:
        axes.plot(up, place - APART, gid="up", **_UP)


def _run(axes, place, row):
    counted = FLOAT32 * row["sent"] * row["rounds"]
    axes.plot(row["bytes_run"], place, gid="both", **_BOTH)
    text = "no parameters"
    if counted > 0:
        axes.plot([counted, row["bytes_run"]], [place, place], color=GUIDE, linewidth=1, zorder=2)
        axes.plot(counted, place, gid="count", **_RATIO)
        text = f"{row['bytes_run'] / counted:.2f} ×"
    axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL)


def _shares(rows):
    return rows[["bytes_down", "bytes_up"]].div(rows["full_bytes"], axis=0)


def _counted(rows):
    return FLOAT32 * rows["sent"].astype(float) * rows["rounds"]


def _scale(axes, one, other, words):
    """A log axis over all values above 0, at least two decades wide, with a tick at every decade that there is room for."""
    values = np.concatenate([np.ravel(np.asarray(part, dtype=float)) for part in (one, other)])
    logs = np.log10(values[values > 0])
    middle, half = (logs.min() + logs.max()) / 2, max(1.0, 0.58 * np.ptp(logs))
    axes.set_xscale("log")
    axes.set_xlim(10 ** (middle - half), 10 ** (middle + half))
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def _notes(efficiency, sending) -> list[str]:
    seeds = sorted({int(value) for value in sending["seeds"]})
    runs = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else f"{seeds[0]} seed{'s' * (seeds[0] > 1)}"
    notes = [
        f"Means over clients and {runs}. Count of parameters: those that are trained and shared, as float32; in the whole run "
        "one way in every round, as reported of FLAP-SAM (arXiv 2407.21739). Bytes are those of the tensors really sent: "
        "both ways, with what goes beside the model, and the last model once more, to be validated."
    ]
    silent = efficiency[~(efficiency["bytes_run"] > 0)]
    if len(silent):
        names = ", ".join(shown_name(name) for name in dict.fromkeys(silent["aggregation"]))
        notes.append(f"Send nothing and are left out: {names}.")
    return notes
