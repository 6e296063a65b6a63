"""What all figures share: one colour, marker and line per cohort, legible sizes, files with the same bytes each time.

Colours: Okabe and Ito, Color Universal Design (2008), which people with the common colour vision deficiencies can tell
apart, without its yellow (too pale on white) and black (for pooled), then a purple and a grey of ours. Markers and line
styles differ, too, so that colour is never the only cue.
Text is written as outlines of DejaVu Sans, which comes with matplotlib: the same picture on every machine, offline.
"""

import os
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from fedbrain.registry import GLOBAL
from fedbrain.tables import written_atomically

PAGE = 7.2  # inches: the width of a page's two columns; font sizes below are in points at this size
SMALL = 9

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4C9A", "#7F7F7F")
MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">", "p", "h", "*")
LINES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (9, 2)))
POOLED_COLOR, POOLED_MARKER = "#000000", "D"
ALARM = "#a00020"
GUIDE = "#5A5A5A"  # chance lines, baselines and other references
RULE = "#E3E3E3"  # grid and dividing lines

POOLED = "pooled"  # the client that stands for all cohorts together
SITE_ONLY = "site_only"  # the head under which the site-only baseline stands in the performance table

STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "errorbar.capsize": 3,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "fedbrain",
    "path.simplify": False,
}

_SHOWN = {
    "linear": "Linear",
    "conv_s": "CONV S",
    "conv_l": "CONV L",
    "resnet18": "ResNet18",
    "ncc": "NCC",
    "frozen": "frozen encoder",
    "lora": "LoRA",
    "full": "full fine-tuning",
    "last_k": "last blocks",
    "norm": "norms and biases",
    "simpleavg": "SimpleAvg",
    "fedavg": "FedAvg",
    "fedce": "FedCE",
    "rate_my_lora": "Rate-My-LoRA",
    "fedavgm": "FedAvgM",
    "fedadam": "FedAdam",
    "fedyogi": "FedYogi",
    "fedadagrad": "FedAdagrad",
    "qfedavg": "q-FedAvg",
    "median": "Median",
    "trimmed_mean": "Trimmed mean",
    "krum": "Krum",
    "multi_krum": "Multi-Krum",
    "bulyan": "Bulyan",
    "fedit": "FedIT",
    "flexlora": "FlexLoRA",
    "dual_lora": "two LoRA pairs",
    "ffa_lora": "FFA-LoRA",
    "fedsa_lora": "FedSA-LoRA",
    "rolora": "RoLoRA",
    "fedex_lora": "FedEx-LoRA",
    "flora": "FLoRA",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "fedper": "FedPer",
    "fedbn": "FedBN",
    "flop": "FLOP",
    "ditto": "Ditto",
    "fedavg_ft": "FedAvg + FT",
    "med_dual_lora": "Med-DualLoRA",
    "fedopal": "FedOPAL",
    "centralized": "Centralized",
    "local": "Local only",
    "pooled": "Pooled",
}


class CohortStyle(NamedTuple):
    """How a cohort is drawn, in every figure alike."""

    color: str
    marker: str
    line: str | tuple


def cohort_styles(cohorts: Sequence[str]) -> dict[str, CohortStyle]:
    """Colour, marker and line style of each cohort, by its place in the config: give all cohorts of the study."""
    # The three lists have different lengths, so two cohorts share a colour only with another marker and line.
    return {
        cohort: CohortStyle(COLORS[n % len(COLORS)], MARKERS[n % len(MARKERS)], LINES[n % len(LINES)])
        for n, cohort in enumerate(cohorts)
    }


def client_styles(cohorts: Sequence[str]) -> dict[str, CohortStyle]:
    """The cohorts' styles and, last, that of all of them pooled."""
    return cohort_styles(cohorts) | {POOLED: CohortStyle(POOLED_COLOR, POOLED_MARKER, "-")}


def cohort_colors(cohorts: Sequence[str]) -> dict[str, str]:
    """Colour of each cohort, by its place in the config."""
    return {cohort: style.color for cohort, style in cohort_styles(cohorts).items()}


def shown_name(name: str) -> str:
    """A head's, tuning's or aggregation's name as a reader knows it (``conv_s``: CONV S); others as they are."""
    if name.endswith(GLOBAL):
        return f"{shown_name(name.removesuffix(GLOBAL))} (global)"
    return _SHOWN.get(name, name)


def styled(function):
    """Decorator: draws under the house style and leaves matplotlib's global settings as they were."""
    return mpl.rc_context(STYLE)(function)


def short_name(name: str, width: int = 24) -> str:
    """A cohort's name, its middle left out where it is longer than ``width``."""
    half = (width - 1) // 2
    return name if len(name) <= width else f"{name[:half]}…{name[-half:]}"


def say(axes, text: str, *, width: int = 44, keep_rows: bool = False) -> None:
    """Puts a text in place of a panel that has nothing to show; ``keep_rows`` leaves the names on its y axis."""
    axes.spines[:].set_visible(False)
    axes.xaxis.set_visible(False)
    axes.yaxis.set_visible(keep_rows)
    axes.text(0.5, 0.5, textwrap.fill(text, width), ha="center", va="center", color=GUIDE, transform=axes.transAxes)


@styled
def text_figure(text: str) -> Figure:
    """A figure that only says why there is nothing to draw."""
    figure = Figure(figsize=(PAGE, 1.6))
    say(figure.subplots(), text)
    return figure


def footnotes(figure: Figure, notes: Sequence[str], *, width: int = 104) -> None:
    """Writes notes below everything else in the figure and makes the figure that much taller."""
    if not notes:
        return
    text = "\n".join(textwrap.fill(note, width, subsequent_indent="   ") for note in notes)
    figure.set_figheight(figure.get_figheight() + 0.17 * (text.count("\n") + 1))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=SMALL, color=GUIDE)


def subject_counts(performance: pd.DataFrame) -> dict[str, str]:
    """``20 subjects, 8 cases`` in the test set, for each client in a table PERFORMANCE."""
    result = {}
    # Where some cell has no model for a client, the others tell how many there are.
    most = performance.sort_values("subjects", ascending=False, kind="stable").drop_duplicates("client")
    for row in most.itertuples():
        subjects, cases = int(row.subjects), int(row.positives)
        text = f"{subjects} subject{'s' * (subjects != 1)}, {cases} case{'s' * (cases != 1)}"
        result[row.client] = text if subjects else "no test subject"
    return result


def auc_floor(cells: pd.DataFrame) -> float:
    """Where an AUC axis starts: a tenth below all values and intervals, at most at 0.4, so that chance shows."""
    lowest = cells[["value", "low"]].min().min()
    return 0.0 if pd.isna(lowest) else max(0.0, min(0.4, float(np.floor(10 * float(lowest) - 0.2)) / 10))


def site_only_auc(performance: pd.DataFrame) -> float | None:
    """Pooled AUC of the site-only baseline in a table PERFORMANCE, if it is there."""
    rows = performance[["head", "client", "metric"]] == [SITE_ONLY, POOLED, "auc"]
    values = performance.loc[rows.all(axis=1), "value"].dropna()
    return float(values.iloc[0]) if len(values) else None


def save_figure(
    figure: Figure, svg_path: str | os.PathLike, png_path: str | os.PathLike, *, alarm: str | None = None
) -> None:
    """Writes the figure as SVG and as PNG (200 dots per inch), the same bytes for the same figure.

    ``alarm`` is a line in red along the right edge: what must not be forgotten where the figure has lost its caption.
    """
    width, height = figure.get_size_inches()
    room = 0.25 if alarm else 0.0  # inches, added at the right, where no figure has a legend
    with mpl.rc_context(STYLE):
        if alarm:
            figure.draw_without_rendering()  # lay everything out in the figure's own size,
            figure.set_layout_engine("none")  # and leave it there when the page grows
            place = {"x": 1 + 0.06 / width, "y": 0.5, "va": "center", "rotation": 270, "in_layout": False}
            figure.text(s=alarm, color=ALARM, fontsize=9, fontweight="bold", **place)
        page = Bbox([[0, 0], [width + room, height]])
        with written_atomically(svg_path) as temporary:
            figure.savefig(temporary, format="svg", bbox_inches=page, metadata={"Date": None, "Creator": None})
        with written_atomically(png_path) as temporary:
            figure.savefig(temporary, format="png", bbox_inches=page, metadata={"Software": None})
