"""Whether scores mean what they say, and what the models reach at a threshold."""

import pandas as pd

from fedbrain.report.figures import figure
from fedbrain.report.html import Cell, Html, columns, folded, heading, items, join, p, table
from fedbrain.report.material import AXES, POOLED, SITE_ONLY, Material, of_cell
from fedbrain.report.numbers import counted, interval


def calibration(material: Material) -> Html:
    """Calibration of the scores; sensitivity and specificity."""
    return join(
        p(
            "Does a score of 0.8 mean that 80 of 100 such people are cases? A slope of 1 and an intercept of 0 are right: with a slope below "
            "1 the scores are too extreme, with an intercept below 0 too high on the whole. Calibration error: mean distance of score and "
            "share of cases over bins of equal mass; in brackets what perfectly calibrated scores would stay under 19 times out "
            "of 20 by chance. All test subjects together, mean over seeds."
        ),
        _calibration_table(material),
        figure(material, "calibration_curves"),
        heading("At a threshold"),
        p(
            "A scan is called a case from a score of 0.5 on, or from the threshold with the largest sensitivity + specificity − 1 on the "
            "validation subjects, chosen for each seed. The test subjects have no part in the choice; the intervals take the threshold as "
            "given."
        ),
        _threshold_tables(material),
    )


def _calibration_table(material: Material) -> Html:
    slopes, intercepts = (material.metric(f"calibration_{name}") for name in ("slope", "intercept"))
    briers = material.metric("brier")
    curves = material.calibration
    curves = curves[(curves["client"] == POOLED) & curves["ece"].notna()].drop_duplicates([*AXES, "seed"])
    rows, notes = [], []
    for cell in material.names:
        if cell == SITE_ONLY:
            continue
        slope, own = slopes.get((*cell, POOLED)), of_cell(curves, cell)
        error = None
        if len(own):
            value, chance = own["ece"].mean(), own["ece_by_chance_95"].mean()
            error = Cell(f"{value:.2f} ({chance:.2f})", float(value))
        rows.append(
            [
                *cell,
                interval(slope),
                interval(intercepts.get((*cell, POOLED))),
                error,
                interval(briers.get((*cell, POOLED))),
            ]
        )
        if slope is not None and not pd.isna(slope["note"]):
            notes.append(slope["note"])
    unit = f"{material.level} interval"
    header = columns(
        "head", "tuning", "aggregation", f"#slope|{unit}", f"#intercept|{unit}", "#calibration error|(by chance)"
    )
    header += columns(f"#Brier score|{unit}")
    if curves["note"].dropna().str.contains("for the eye alone").any():
        notes.append("fewer than five subjects in a bin: curves are for the eye alone")
    return join(
        table(
            "calibration-table",
            "Calibration on all test subjects",
            header,
            rows,
            file="results/evaluation/calibration.tsv",
            heads=3,
        ),
        items(list(dict.fromkeys(notes)), kind="note"),
    )


def _threshold_tables(material: Material) -> Html:
    thresholds = material.thresholds
    unit = f"{material.level} interval"
    header = columns(
        "head", "tuning", "aggregation", "on", f"#sensitivity at 0.5|{unit}", f"#specificity at 0.5|{unit}"
    )
    header += columns(
        "#chosen threshold|SD over seeds", f"#sensitivity|{unit}", f"#specificity|{unit}", f"#balanced accuracy|{unit}"
    )
    found: dict[tuple, dict] = {}
    for row in thresholds.to_dict("records"):
        cell = (*(row[axis] for axis in AXES), row["client"])
        found.setdefault(cell, {})[row["rule"], row["metric"]] = row
    rows = {True: [], False: []}
    for cell, of in found.items():
        chosen, value = of.get(("youden", "sensitivity")), None
        if chosen is not None and not pd.isna(chosen["threshold"]):
            spread = "" if pd.isna(chosen["threshold_sd"]) else f" (SD {chosen['threshold_sd']:.2f})"
            value = Cell(f"{chosen['threshold']:.2f}{spread}", float(chosen["threshold"]))
        fixed = [interval(of.get(("fixed", name))) for name in ("sensitivity", "specificity")]
        best = [interval(of.get(("youden", name))) for name in ("sensitivity", "specificity", "balanced_accuracy")]
        rows[cell[3] == POOLED].append([*cell, *fixed, value, *best])
    stands = thresholds[thresholds["note"].fillna("").str.contains("stands")]
    notes = []
    for client, own in stands.groupby("client", sort=False):
        cells = counted(len(own[AXES].drop_duplicates()), "cell")
        notes.append(f"{client}: {own['note'].str.split('; ').str[-1].iloc[0]}, for {cells} (in one seed or more)")
    file = "results/evaluation/thresholds.tsv"
    return join(
        table(
            "thresholds-table",
            "At 0.5, and at the threshold chosen on validation subjects",
            header,
            rows[True],
            file=file,
            heads=3,
        ),
        folded(
            f"The same by cohort ({len(rows[False]):,} rows)",
            table("thresholds-clients", "Thresholds by cohort", header, rows[False], file=file, heads=4),
        )
        if rows[False]
        else "",
        folded(f"Where no threshold could be chosen ({len(notes)})", items(notes)) if notes else "",
    )
