"""The study in plain words: what was asked, the answer, and what the answer does not say."""

import pandas as pd

from fedbrain.registry import REFERENCES
from fedbrain.report.html import NONE, Html, heading, items, join, p, strong
from fedbrain.report.material import AXES, POOLED, SITE_ONLY, Material, of_cell, shown
from fedbrain.report.numbers import counted, listed, words
from fedbrain.report.sections import alarms

FEW = 20  # test subjects of a class below which the page says that they are few (evaluation.reported)


def summary(material: Material) -> Html:
    """The first section."""
    return join(
        heading("What was asked", id="asked"),
        _asked(material),
        heading("The answer", id="answer"),
        _answer(material),
        _facts(material),
        heading("What this does not say", id="limits"),
        items(_limits(material)),
    )


def _asked(material: Material) -> Html:
    heads, tunings, aggregations = (list(dict.fromkeys(cell[i] for cell in material.cells)) for i in range(3))
    negative, positive = material.classes
    cohorts = len(material.cohorts)
    return p(
        f"Can a computer tell {positive} from {negative} on a T1-weighted MRI of the head, when the "
        f"{counted(cohorts, 'cohort (a hospital)', 'cohorts (hospitals)')} that own the scans do not pool them? A "
        f"network ({material.study['encoder']['name']}) turns each brain into numbers; a part of it, or what stands behind it, is trained at each "
        "hospital, and only what was learned, never a scan, is sent and combined (federated learning). This study compares ",
        strong(counted(len(heads), "classification head")),
        f" ({', '.join(heads)}), ",
        strong(counted(len(tunings), "way to tune the network", "ways to tune the network")),
        f" ({', '.join(tunings)}) and ",
        strong(counted(len(aggregations), "way to combine the hospitals", "ways to combine the hospitals")),
        f" ({', '.join(aggregations)}).",
    )


def _answer(material: Material) -> Html:
    best, negative, positive = material.best, *material.classes
    if best is None:
        return join(
            p("No federated cell has a pooled AUC, so there is no answer. ", _reason(material), kind="answer"),
            _baseline(material),
        )
    row = material.federated[best]
    held = row["value"]
    parts = [
        _no_evidence(material),
        p(
            f"Shown one person with {positive} and one {negative}, the best federated model picks the right one in about ",
            strong(f"{100 * held:.0f} of 100 such pairs"),
            f": AUC {words(row)}, {material.level} interval in brackets, where 0.50 is guessing. It was tested on "
            f"{row['subjects']:,} persons ({row['positives']} with {positive}, {row['negatives']} {negative}) who had no part "
            f"in training. The model: {shown(best)} (head / tuning / aggregation).",
            kind="answer",
        ),
    ]
    alike = [
        cell for cell, row in material.federated.items() if cell != best and f"{row['value']:.2f}" == f"{held:.2f}"
    ]
    sentences = [f"The same AUC to two digits: {counted(len(alike), 'other federated cell')}."] if alike else []
    sentences += _at_a_threshold(material, best)
    for reference, meaning in (
        ("centralized", "With all scans in one place (centralized)"),
        ("local", "With each hospital alone (local)"),
    ):
        other = material.pooled.get((*best[:2], reference))
        if other is not None:
            sentences.append(f"{meaning} the same head and tuning reach {words(other)}.")
    sentences += _unseen(material, best)
    if not pd.isna(row["low"]) and row["low"] <= 0.5:
        sentences.insert(0, "The interval includes 0.50: guessing is not ruled out.")
    return join(*parts, items(sentences), _baseline(material))


def _at_a_threshold(material: Material, cell: tuple[str, str, str]) -> list[str]:
    """How many cases it finds and how many controls it clears, where there is a threshold."""
    own = of_cell(material.thresholds, cell)
    own = own[(own["client"] == POOLED) & (own["rule"] == "youden") & own["value"].notna()]
    rows = {row["metric"]: row for row in own.to_dict("records")}
    if not {"sensitivity", "specificity"} <= set(rows):
        return []
    return [
        f"At a threshold that was chosen on validation subjects it finds {words(rows['sensitivity'])} of the cases and "
        f"clears {words(rows['specificity'])} of the controls (shares with intervals)."
    ]


def _unseen(material: Material, cell: tuple[str, str, str]) -> list[str]:
    """What is known of cohorts that the model was not trained on: of this cell, or of the one that was looked at."""
    found = material.extra.get("transfer")
    if found is None:
        return []
    rows = found[(found["metric"] == "auc") & (found["model"] == "unseen") & found["value"].notna()]
    rows = rows[(rows["cohort"] == "mean") | (rows["kind"] == "external")].to_dict("records")
    cells = list(dict.fromkeys(tuple(row[axis] for axis in AXES) for row in rows))
    if not cells:
        return []
    chosen = cell if cell in cells else cells[0]
    of = [row for row in rows if tuple(row[axis] for axis in AXES) == chosen]
    told = [
        f"{words(row)} on {'cohorts that were left out of the training (mean)' if row['cohort'] == 'mean' else row['cohort']}"
        + (", all their subjects" if row["tested"] == "all" and row["cohort"] == "mean" else "")
        for row in of
        if row["tested"] == "all" or row["kind"] == "external" or not any(r["tested"] == "all" for r in of)
    ]
    return [f"On people of cohorts that it has not seen, {shown(chosen)} reaches {listed(told)}."]


def _no_evidence(material: Material) -> Html:
    """The alarms once more, beside the number that they are about."""
    titles = [title for title, _ in alarms.told(material)]
    return p(strong("Read this number with care. "), " ".join(titles), kind="caution") if titles else Html("")


def _reason(material: Material) -> str:
    notes = [row["note"] for (*_, client), row in material.aucs.items() if client == "pooled" and row["note"]]
    return next((f"Reason: {note}." for note in notes if isinstance(note, str)), "")


def _baseline(material: Material) -> Html:
    row = material.site_only
    if row is None:
        return Html("")
    return p(
        f"A classifier that knows only which cohort a person comes from, and has seen no brain, reaches {words(row)}, since the "
        "cohorts differ in their share of cases. What a model has learned about brains is what it has beyond that."
    )


def _facts(material: Material) -> Html:
    splits = material.splits
    runs = sum(len(cell[3]) for cell in material.cells)
    used = sum(map(len, material.used.values()))
    best = material.best
    facts = [
        (f"{len(material.cohorts)}", "cohorts"),
        (f"{len(splits):,}", "subjects"),
        (f"{used:,}", "scans used"),
        (f"{int((splits['split'] == 'test').sum()):,}", "test subjects"),
        (f"{len(material.cells)}", "cells of the grid"),
        (f"{runs}", "runs (cell and seed)"),
        (NONE if best is None else f"{material.federated[best]['value']:.2f}", "best federated AUC"),
    ]
    return Html(
        '<dl class="facts">\n'
        + "".join(f"<div><dt>{name}</dt><dd>{number}</dd></div>\n" for number, name in facts)
        + "</dl>\n"
    )


def _limits(material: Material) -> list:
    said = []
    best = material.best
    if best is not None:
        row = material.federated[best]
        if len(material.federated) > 1:
            said.append(
                f"The model named above is the best of {len(material.federated)} federated cells, picked after looking at the test "
                "subjects, so its value is optimistic. Which cells truly differ stands under Comparisons."
            )
        chance = [r for r in material.federated.values() if not pd.isna(r["low"]) and r["low"] <= 0.5]
        if chance:
            said.append(
                f"The interval of {len(chance)} of the {len(material.federated)} federated cells includes 0.50, that is chance."
            )
        if min(row["positives"], row["negatives"]) < FEW:
            said.append(
                f"{row['positives']} cases and {row['negatives']} controls are few: the intervals are wide, and a "
                "difference that is not found may still exist."
            )
        if row["seeds"] == 1:
            said.append("The best cell was trained once: how much its result depends on the random start is not known.")
    said.append(
        f"The {material.level} intervals are about other people of these same cohorts. They say nothing about another hospital, scanner "
        "or population."
    )
    if SITE_ONLY in material.names and any(cell[2] in REFERENCES for cell in material.names):
        said.append(
            "A pooled AUC ranks people of different hospitals together, which rewards knowing the hospital; AUCs within each "
            "hospital stand under Results."
        )
    said.append(
        f"Cases and controls are told apart as the cohorts diagnosed them ({listed(material.classes)}). An AUC is no probability that one "
        "person is ill, and no tested use in a clinic: this is research software and no medical device."
    )
    return said
