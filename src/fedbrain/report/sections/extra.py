"""Tables that a study has only where its config asks for them: cohorts that no model has seen, personal models, privacy, explanation."""

from collections.abc import Mapping

import pandas as pd

from fedbrain.report.figures import figures
from fedbrain.report.html import Cell, Html, columns, items, join, p, table
from fedbrain.report.material import AXES, Material, shown
from fedbrain.report.numbers import fixed, interval, p_value

ATTACKS = {"loss": "loss", "lira": "likelihood ratio (LiRA)"}


def transfer(material: Material) -> Html:
    """Cohorts that a model was not trained on, beside the model that saw them."""
    found = material.extra.get("transfer")
    if found is None or found.empty:
        return Html("")
    aucs = found[found["metric"] == "auc"]
    rows, spread = [], []
    for key, of in aucs.groupby([*AXES, "cohort", "kind", "tested"], sort=False):
        by_model = {row["model"]: row for row in of.to_dict("records")}
        first = next(iter(by_model.values()))
        models = [
            next((by_model[name] for name in by_model if name.startswith(kind)), None) for kind in ("unseen", "seen")
        ]
        difference = next((by_model[name] for name in by_model if name.startswith("diff")), None)
        rows.append(
            [
                *key,
                *(interval(row) for row in models),
                interval(difference, sign=True, strong=True),
                p_value(difference["p_holm"]) if difference is not None else None,
                *(_whole(first[name]) for name in ("positives", "negatives")),
            ]
        )
        unseen = models[0]
        if unseen is not None and not pd.isna(unseen["prediction_low"]):
            limits = {"value": unseen["value"], "low": unseen["prediction_low"], "high": unseen["prediction_high"]}
            spread.append(
                [*key[:3], interval(unseen), interval(limits), fixed(unseen["tau"]), _whole(unseen["cohorts"])]
            )
    unit = f"{material.level} interval"
    header = columns("head", "tuning", "aggregation", "cohort", "kind", "tested on", f"#unseen|{unit}", f"#seen|{unit}")
    header += columns(f"#unseen − seen|{unit}", "#p|Holm", "#cases", "#controls")
    further = columns("head", "tuning", "aggregation", f"#mean AUC|{unit}", "#a further cohort|prediction interval")
    further += columns("#between cohorts|SD, logits", "#cohorts")
    return join(
        p(
            "Each model was trained without a cohort and tested on it (left out), or tested on a cohort that never trains (external): "
            "what a hospital might expect that joins later, and the nearest that this study comes to external validation. Seen: the "
            "model of the same cell that trained with the cohort. AUC; other metrics are in results/evaluation/transfer.tsv."
        ),
        table(
            "transfer-table",
            "AUC on cohorts that the model has not seen",
            header,
            rows,
            file="results/evaluation/transfer.tsv",
            heads=3,
        ),
        table(
            "transfer-mean",
            "Mean over the cohorts that were left out, and where a further one may lie",
            further,
            spread,
            heads=3,
        ),
        figures(material, "transfer"),
    )


def personalisation(material: Material) -> Html:
    """Models of a cohort's own against others on the same test subjects."""
    found = material.extra.get("personalisation")
    if found is None or found.empty:
        return Html("")
    rows = [
        [
            shown(tuple(row["cell_a"].split("/"))),
            row["against"],
            shown(tuple(row["cell_b"].split("/"))),
            row["client"],
            interval(row, of="difference", sign=True, strong=True),
            p_value(row["p_delong"]),
            p_value(row["p_holm"]),
            fixed(row["seed_se"], 3),
            *(_whole(row[name]) for name in ("training", "positives", "negatives")),
        ]
        for row in found[found["metric"] == "auc"].to_dict("records")
    ]
    header = columns(
        "own model", "against", "cell", "cohort", f"#AUC own − other|{material.level} interval", "#p|DeLong", "#p|Holm"
    )
    header += columns("#from seeds|standard error", "#training|subjects", "#cases", "#controls")
    return join(
        p(
            "A cohort's own model against the global one, against training on its scans alone, and against training on all scans pooled, on "
            "the same test subjects. An interval that holds 0 is no proof that a model of its own does not matter."
        ),
        table(
            "personalisation-table",
            "What a model of its own is worth",
            header,
            rows,
            file="results/evaluation/personalisation.tsv",
            heads=4,
        ),
        figures(material, "personalisation"),
    )


def explanation(material: Material) -> Html:
    """What the models look at: figures only, since the tables name scans."""
    drawn = figures(material, "explanation")
    if not drawn:
        return Html("")
    return join(
        p(
            "Where in the head the models look: means over cases and over controls of maps of single test scans, on the template. A map that "
            "seems plausible is no proof of a right reason: compare it with that of scrambled weights below it. docs/explanation.md says "
            "what such maps cannot show."
        ),
        drawn,
    )


def privacy(material: Material) -> Html:
    """What leaves a hospital, what does not, and what was measured of it."""
    return join(
        items(
            [
                "Sent: the trained parameters that the rule shares, numbers of scans, losses, validation scores and what the rule needs "
                "besides. Never sent: a scan, an embedding, the score of one scan, a subject's id.",
                "For this evaluation the predictions of all clients lie in one folder, since the study is a simulation in one place; between "
                "real hospitals they would have to stay, or be released on purpose.",
                "No noise is added and nothing is encrypted between clients and server: no formal privacy (such as differential "
                "privacy) is promised. Updates of a model can, in principle, betray training data.",
                "This page shows counts and results only: no subject's id, no picture of a single head. Groups of one or two persons in its "
                "tables may still be recognised by who knows them.",
            ]
        ),
        _membership(material),
    )


def _membership(material: Material) -> Html:
    found = material.extra.get("privacy")
    if found is None or found.empty:
        return p("Whether training subjects can be told from the released models was not measured in this study.")
    rows = [
        [
            *(row[axis] for axis in AXES),
            row["client"],
            ATTACKS.get(row["attack"], row["attack"]),
            _membership_metric(row),
            interval(row, 3 if row["metric"] != "auc" else 2, strong=True),
            *(_whole(row[name]) for name in ("members", "nonmembers", "shadows")),
            "" if pd.isna(row["note"]) else row["note"],
        ]
        for row in found.to_dict("records")
    ]
    header = columns("head", "tuning", "aggregation", "cohort", "attack", "metric", f"#value|{material.level} interval")
    header += columns("#members|subjects", "#non-members|subjects", "#shadow models", "note")
    return join(
        p(
            "Attacked were released models: given the model, a scan and its label, is the subject one that it was trained on (a member) or a test "
            "subject? An AUC of 0.50 is chance; an attack that finds nothing shows no privacy."
        ),
        table("privacy-table", "Membership inference", header, rows, file="results/evaluation/privacy.tsv", heads=3),
        figures(material, "membership"),
    )


def _membership_metric(row: Mapping) -> str:
    if row["metric"] == "auc":
        return "AUC"
    return row["metric"] if pd.isna(row["fpr"]) else f"members found at {100 * row['fpr']:g} % false alarms"


def _whole(value) -> Cell:
    """A count; tables that are read without types hold it as a float where one is missing."""
    return Cell("–") if pd.isna(value) else Cell(f"{int(value):,}", float(value))
