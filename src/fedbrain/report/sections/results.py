"""What every cell of the grid reached on the test subjects, and what makes the number uncertain."""

from statistics import NormalDist

import pandas as pd

from fedbrain.evaluation.reported import DELONG, FEW, reported_auc
from fedbrain.registry import REFERENCES
from fedbrain.report.figures import figure, figures
from fedbrain.report.html import NONE, Cell, Column, Html, columns, folded, heading, join, p, strong, table
from fedbrain.report.material import POOLED, SITE_ONLY, Material, axes_of
from fedbrain.report.numbers import fixed, interval, listed, share


def results(material: Material) -> Html:
    """Tables and figures of performance, by cell and by cohort."""
    return join(
        p(
            "The AUC is the share of pairs of one case and one control in which the case has the higher score: 1 is perfect, 0.50 is "
            f"guessing. All values are means over seeds on held-out test subjects, with {material.level} intervals from "
            f"{material.study['evaluation']['resamples']:,} bootstrap resamples of subjects (all scans of a subject together, "
            f"stratified by label). {_interval_words(material)}"
        ),
        figure(material, "auc_forest"),
        _result_table(material),
        p(
            "Pooled ranks the test subjects of all cohorts together; for local it mixes the scores of different models. Centralized "
            "(all scans in one place) and local (each hospital alone) are references, no federations. Knowing the site "
            "alone is a baseline without any image."
            + (f" {listed(material.external)}: tested on only, and not among the pooled." if material.external else ""),
            kind="note",
        ),
        heading("By cohort"),
        _client_table(material),
        figure(material, "auc_table"),
        heading("Two kinds of uncertainty", id="uncertainty"),
        _uncertainty(material),
        heading("More figures"),
        *(folded(title, drawn) for title, drawn in _more(material) if drawn),
    )


def _more(material: Material) -> list[tuple[str, Html]]:
    return [
        ("ROC curves", figure(material, "roc_curves")),
        ("AUC by head", figure(material, "auc_by_head")),
        ("AUC by tuning", figure(material, "auc_by_tuning")),
        ("AUC by cohort and aggregation", figures(material, "auc_by_client")),
    ]


def _interval_words(material: Material) -> str:
    """Whose AUCs have another interval than the bootstrap's."""
    rows = reported_auc(material.performance)
    few = set(rows.loc[(rows["interval"] == DELONG) & rows["low"].notna(), "client"])
    names = [name for name in (*material.cohorts, POOLED) if name in few]
    if not names:
        return ""
    return (
        f"AUCs of {listed(names)} have DeLong's interval instead (logit scale, Student's t; Newcombe's where the classes are "
        f"separated completely), since with fewer than {FEW} test subjects of a class the bootstrap's is too narrow."
    )


def _result_table(material: Material) -> Html:
    more = [("balanced_accuracy", "balanced accuracy"), ("average_precision", "average precision")]
    tables = [(title, rows) for name, title in more if (rows := material.metric(name))]
    header = columns(
        "head", "tuning", "aggregation", "kind", f"#AUC|{material.level} interval", "#SD over seeds", "#seeds"
    )
    header += [Column(title, f"{material.level} interval", True) for title, _ in tables]
    header += columns("#cases|test subjects", "#controls|test subjects")
    rows = []
    for cell in material.names:
        row = material.aucs.get((*cell, POOLED))
        known = row is not None
        rows.append(
            [
                *axes_of(cell),
                "baseline" if cell == SITE_ONLY else "reference" if cell[2] in REFERENCES else "federated",
                interval(row, strong=True),
                fixed(row["seed_sd"], 3) if known and cell != SITE_ONLY else None,
                int(row["seeds"]) if known and cell != SITE_ONLY else None,
                *(interval(of.get((*cell, POOLED))) for _, of in tables),
                *((int(row["positives"]), int(row["negatives"])) if known else (None, None)),
            ]
        )
    return table(
        "results-table",
        "All test subjects together, by cell",
        header,
        rows,
        file="results/evaluation/performance.tsv",
        heads=3,
    )


def _client_table(material: Material) -> Html:
    header = columns("head", "tuning", "aggregation")
    for cohort in material.cohorts:
        row = next((row for key, row in material.aucs.items() if key[3] == cohort and key[:3] != SITE_ONLY), None)
        unit = f"{row['positives']} cases, {row['negatives']} controls" if row is not None else ""
        header.append(Column(cohort, unit, True))
    rows = [
        [*axes_of(cell), *(interval(material.aucs.get((*cell, cohort))) for cohort in material.cohorts)]
        for cell in material.names
        if cell != SITE_ONLY  # one score for a whole cohort ranks nobody within it
    ]
    return table(
        "clients-table",
        f"AUC on each cohort's own test subjects ({material.level} interval)",
        header,
        rows,
        file="results/evaluation/performance.tsv",
        heads=3,
    )


def _uncertainty(material: Material) -> Html:
    """How much of it comes from the persons at hand, and how much from the random start."""
    z = NormalDist().inv_cdf(0.5 + material.study["evaluation"]["level"] / 2)
    rows = []
    for cell, row in material.pooled.items():
        if pd.isna(row["low"]) or pd.isna(row["high"]):
            continue
        subjects = (row["high"] - row["low"]) / (2 * z)
        seeds = None if pd.isna(row["seed_sd"]) else row["seed_sd"]
        part, larger = Cell(NONE), "not known: one seed"
        if seeds is not None and subjects + seeds > 0:
            part = share(seeds**2 / (seeds**2 + subjects**2))
            larger = "the persons tested" if subjects >= seeds else "the random start"
        rows.append([*cell, fixed(row["value"]), fixed(subjects, 3), fixed(seeds, 3), part, larger])
    several = [row for row in rows if row[6].value is not None]
    if not rows:
        return p("No cell has an interval.")
    verdict = ""
    if several:
        by_start = sum(row[7] == "the random start" for row in several)
        verdict = (
            f"Of {len(several)} cells that were trained several times, the persons tested are the larger part for "
            f"{len(several) - by_start}, the random start for {by_start}."
        )
    elif rows:
        verdict = "Every cell was trained once, so the second question has no answer in this study."
    header = columns(
        "head", "tuning", "aggregation", "#AUC", "#from persons|SD, about", "#from the random start|SD over seeds"
    )
    header += columns("#share of the start|of the variance", "larger part")
    return join(
        p(
            strong("Would other patients have given another number? "),
            "The interval answers that: it is what other patients of the same hospitals might have shown. It "
            "shrinks with more test subjects; training again does not help. ",
            strong("Would the same training with another random start have given another number? "),
            "The spread over seeds answers that. It has nothing to do with the number of patients, and is no part "
            "of the interval. A result is trustworthy only where both are small.",
        ),
        p(verdict),
        folded(
            "Both, for each cell",
            table("uncertainty-table", "Where the uncertainty of a pooled AUC comes from", header, rows, heads=3),
            p(
                f"From persons: width of the {material.level} interval divided by {2 * z:.2f}, as for a normal "
                "distribution, which is rough on few subjects. Share: the square of the second over the sum of both squares, for a model "
                "that is trained once. A spread over two or three seeds is itself a guess.",
                kind="note",
            ),
        ),
    )
