"""Tables that a study has only where its config asks for them: cohorts that no model has seen, personal models, privacy, explanation."""

import pandas as pd

from fedbrain.evaluation.reported import reported_auc
from fedbrain.report.figures import figures
from fedbrain.report.html import Cell, Html, columns, items, join, p, table
from fedbrain.report.material import AXES, Material, shown
from fedbrain.report.numbers import fixed, interval, p_value, percent

ATTACKS = {"loss": "loss", "lira": "LiRA"}


def transfer(material: Material) -> Html:
    """Cohorts that a model was not trained on, beside the model that saw them."""
    found = material.extra.get("transfer")
    if found is None or found.empty:
        return Html("")
    place = ["cohort", "kind", "tested"]
    aucs = _reported(found[found["value"].notna()], [*place, "model"])
    rows, spread = [], []
    for key, of in aucs.groupby([*AXES, *place], sort=False):
        by_model = {row["model"]: row for row in of.to_dict("records")}
        first, unseen = next(iter(by_model.values())), by_model.get("unseen")
        if key[3] == "mean":
            if unseen is not None:
                limits = {"value": unseen["value"], "low": unseen["prediction_low"], "high": unseen["prediction_high"]}
                told = [
                    interval(unseen, strong=True),
                    interval(limits),
                    fixed(unseen["tau"]),
                    _whole(unseen["cohorts"]),
                ]
                spread.append([*key[:3], key[5], *told])
            continue
        difference = by_model.get("difference")
        rows.append(
            [
                *key,
                *(interval(by_model.get(name)) for name in ("unseen", "seen")),
                interval(difference, sign=True),
                p_value(difference["p_holm"]) if difference is not None else None,
                *(_whole(first[name]) for name in ("positives", "negatives")),
            ]
        )
    unit = f"{material.level} interval"
    header = columns("head", "tuning", "aggregation", "cohort", "kind", "tested on", f"#unseen|{unit}", f"#seen|{unit}")
    header += columns(f"#unseen − seen|{unit}", "#p|Holm", "#cases", "#controls")
    further = columns(
        "head", "tuning", "aggregation", "tested on", f"#mean AUC|{unit}", "#a further cohort|prediction interval"
    )
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
    counts = found.assign(positives=found["members"], negatives=found["nonmembers"])
    aucs = _reported(counts, ["client", "attack"])
    keys = [*AXES, "client", "attack"]
    rates = {tuple(row[name] for name in (*keys, "metric")): row for row in found.to_dict("records")}
    rows = []
    for row in aucs.to_dict("records"):
        key = tuple(row[name] for name in keys)
        lowest = rates.get((*key, "tpr_at_least_fpr"))
        rows.append(
            [
                *key[:4],
                ATTACKS.get(row["attack"], row["attack"]),
                interval(row, strong=True),
                interval(rates.get((*key, "tpr_at_fpr_0.01"))),
                interval(lowest),
                Cell("–") if lowest is None or pd.isna(lowest["fpr"]) else percent(lowest["fpr"]),
                *(_whole(row[name]) for name in ("members", "nonmembers", "shadows")),
            ]
        )
    unit = f"{material.level} interval"
    header = columns(
        "head",
        "tuning",
        "aggregation",
        "cohort",
        "attack",
        f"#AUC|{unit}",
        "#found at 1 %|of members",
        "#found|of members",
    )
    header += columns("#at|false alarms", "#members|subjects", "#non-members|subjects", "#shadow models")
    notes = [note for note in dict.fromkeys(found.loc[found["metric"] == "tpr_at_least_fpr", "note"].dropna())]
    return join(
        p(
            "Attacked were released models: given the model, a scan and its label, is the subject one that it was trained on (a member) or a test "
            "subject? An AUC of 0.50 is chance; an attack that finds nothing shows no privacy. Found at 1 %: members that are found while at most 1 % "
            "of the non-members are called members; it needs 100 non-members. Beside it the same at the lowest rate of false alarms that "
            "there are non-members for. Loss: who has a low loss is called a member. LiRA: likelihood ratio with shadow models."
        ),
        table("privacy-table", "Membership inference", header, rows, file="results/evaluation/privacy.tsv", heads=3),
        items([f"Found at the lowest rate: {note}." for note in notes], kind="note"),
        figures(material, "membership"),
    )


def _reported(found: pd.DataFrame, place: list[str]) -> pd.DataFrame:
    """AUC rows with the interval to report, each of ``place`` for itself."""
    named = found.assign(client=found[place].astype(str).agg("\n".join, axis=1), own=range(len(found)))
    rows = reported_auc(named)
    rows["client"] = found["client"].to_numpy()[rows["own"]] if "client" in found else rows["client"]
    return rows


def _whole(value) -> Cell:
    """A count; tables that are read without types hold it as a float where one is missing."""
    return Cell("–") if pd.isna(value) else Cell(f"{int(value):,}", float(value))
