"""What went wrong or must be kept in mind, from all stages."""

import pandas as pd

from fedbrain.evaluation.reported import reported_auc
from fedbrain.report.flow import failures
from fedbrain.report.html import Html, columns, join, p, table
from fedbrain.report.material import SITE_ONLY, Material
from fedbrain.report.numbers import counted


def warnings(material: Material) -> Html:
    """A table of them, by stage."""
    rows = [[stage, text] for stage, text in told(material)]
    if not rows:
        return p("None.")
    return join(
        p(f"{counted(len(rows), 'remark')} of all stages. None stopped the study; each may matter for what it says."),
        table("warnings-table", "Failures and warnings", columns("stage", "what"), rows),
    )


def told(material: Material) -> list[tuple[str, str]]:
    """Stage and text of each warning."""
    found = []
    for cohort, excluded in material.excluded.items():
        for reason, count in excluded["reason"].value_counts().items():
            found.append(("intake", f"{cohort}: {count} left out: {reason}"))
    for cohort, volumes in material.volumes.items():
        for reason, count in failures(volumes).value_counts().items():
            found.append(("preprocessing", f"{cohort}: {counted(count, 'scan')} failed: {reason}"))
    found += [("intake", text) for text in _duplicates(material.duplicates)]
    for text in dict.fromkeys(text for summary in material.summaries for text in summary["warnings"]):
        found.append(("training", text))
    if {summary["device"] for summary in material.summaries} == {"cpu"}:
        found.append(("training", "All runs were computed on the CPU."))
    notes = reported_auc(material.performance).dropna(subset=["note"])
    notes = notes[notes["head"] != SITE_ONLY[0]].drop_duplicates(["client", "note"])
    found += [("evaluation", f"AUC of {row.client}: {row.note}") for row in notes.itertuples()]
    return found


def _duplicates(duplicates: pd.DataFrame) -> list[str]:
    """By the cohorts that share images: whose they are, and where diagnoses contradict each other."""
    found = []
    images = duplicates.groupby("image")
    shared = images["cohort"].agg(lambda cohorts: " and ".join(sorted(set(cohorts))))
    subjects = (duplicates["cohort"] + "/" + duplicates["subject"]).groupby(duplicates["image"]).nunique()
    for cohorts, numbers in shared.groupby(shared).groups.items():
        count, several = len(numbers), int((subjects[numbers] > 1).sum())
        torn = int((images["label"].nunique()[numbers] > 1).sum())
        found.append(
            f"{cohorts}: {count} {'image occurs' if count == 1 else 'images occur'} more than once, {several} of them under "
            "several subject ids, which count as one person and stand on one side of the split; see "
            "results/cohorts/duplicates.tsv"
            + (f". The diagnoses of {torn} contradict each other: one of them is wrong" if torn else "")
        )
    return found
