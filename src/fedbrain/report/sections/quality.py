"""What preprocessing made of the scans, and which of them stand out."""

import pandas as pd

from fedbrain.cohorts.intake import ON_EXCLUDE_LIST
from fedbrain.imaging.outliers import METRICS, drop_words
from fedbrain.report.figures import figure
from fedbrain.report.html import NONE, Cell, Column, Html, columns, folded, join, link, p, table
from fedbrain.report.material import Material


def quality(material: Material) -> Html:
    """Counts of flags by cohort, the metrics by cohort, and the intensities."""
    return join(
        p(_words(material)),
        _flag_table(material),
        folded("The quality metrics of each cohort", _metric_table(material), p(_metric_words(), kind="note")),
        figure(material, "intensity_profiles"),
    )


def _words(material: Material) -> str:
    settings = material.study["quality"]
    limits = [
        " and ".join(f"{'at least' if side == 'min' else 'at most'} {value:g}" for side, value in limit.items())
        + f" for {METRICS[name].title}"
        for name, limit in settings["limits"].items()
    ]
    return (
        f"A scan is flagged where it stands out from its own cohort in a metric's bad direction (robust z over "
        f"{settings['outlier_z']:g})"
        + (f", does not keep a limit ({'; '.join(limits)})," if limits else "")
        + " or has no value of a metric that most scans have"
        + f". {drop_words(settings['drop'])} The linked pages show every scan with its picture and all metrics. They hold subject ids "
        "and pictures of heads, so they are files beside this page (results/quality), which stay with the data"
        + (
            "; as the config asks, Snakemake's report of this study contains them, and must stay with the data, too."
            if settings["in_report"]
            else ", and are no part of it or of Snakemake's report: the links work where the results lie."
        )
    )


def _flag_table(material: Material) -> Html:
    header = columns(
        "cohort", "page", "flagged for", "#scans", "#failed", "#flagged", "#dropped|by threshold", "#excluded|by list"
    )
    rows = []
    for cohort, assessed in material.quality.items():
        failed = assessed["status"] != "ok"
        reasons = assessed.loc[assessed["flagged"] == 1, "reason"].astype("string")
        told = reasons.str.split("; ").explode().str.split(" ").str[0].value_counts()
        metrics = "; ".join(f"{METRICS[name].title} ({count})" for name, count in told.items()) or NONE
        dropped = int((~failed & (assessed["kept"] == 0)).sum())
        listed = int((material.excluded[cohort]["reason"] == ON_EXCLUDE_LIST).sum())
        page = link(f"../quality/{cohort}.html", f"scans of {cohort}")
        counts = [len(assessed), int(failed.sum()), int(assessed["flagged"].sum()), dropped, listed]
        rows.append([cohort, page, metrics, *counts])
    return table("flags-table", "Flagged, dropped and excluded scans", header, rows)


def _metric_words() -> str:
    return "Median (5th to 95th percentile) of the scans that did not fail. docs/quality.md says what each metric is."


def _metric_table(material: Material) -> Html:
    known = [name for name in METRICS if any(name in assessed for assessed in material.quality.values())]
    bad = {"low": "low", "high": "high", "both": "either way"}
    rows = []
    for name in known:
        row = [METRICS[name].title, bad[METRICS[name].bad]]
        for assessed in material.quality.values():
            values = (
                assessed.loc[assessed["status"] == "ok", name].dropna() if name in assessed else pd.Series(dtype=float)
            )
            row.append(_spread(values.astype(float)) if len(values) else None)
        rows.append(row)
    header = columns("metric", "bad") + [Column(cohort, "", True) for cohort in material.quality]
    return table("metrics-table", "Quality metrics by cohort", header, rows)


def _spread(values: pd.Series) -> Cell:
    low, middle, high = values.quantile([0.05, 0.5, 0.95])
    return Cell(f"{middle:.3g} ({low:.3g} to {high:.3g})", float(middle))
