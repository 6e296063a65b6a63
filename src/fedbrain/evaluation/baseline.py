"""A classifier that knows the site only: what a pooled AUC owes to cohorts that differ in their share of cases."""

from collections.abc import Mapping

import pandas as pd

from fedbrain.tables import PREDICTIONS

CELL = ("site_only", "none", "none")  # head, tuning, aggregation under which it stands in the performance table


def site_only(splits: pd.DataFrame, scans: pd.DataFrame | None = None) -> pd.DataFrame:
    """Predictions whose score is the share of cases among the training subjects of the scan's cohort.

    splits: table SPLITS. scans: the test scans to score (columns of PREDICTIONS but score, for example any cell's
    predictions), so that the baseline stands on the same rows as the models; without it one row per test subject.
    A cohort without training subjects gets the share over all cohorts. Returns a table PREDICTIONS.

    Within a cohort all scores are equal, so every cohort's own AUC is 0.5 by construction; the pooled AUC is what can
    be had without looking at a scan. The baseline is ours; on the confounding see Zech et al., PLOS Medicine
    15:e1002683 (2018).
    """
    training = splits[splits["split"] == "train"]
    prevalence = training.groupby("cohort")["label"].mean().astype("Float64")
    if scans is None:
        scans = splits.loc[splits["split"] == "test", ["cohort", "subject", "label"]].assign(session=pd.NA)
    result = scans[["cohort", "subject", "session", "label"]].reset_index(drop=True)
    score = result["cohort"].map(prevalence).astype("Float64")
    if len(training):
        score = score.fillna(float(training["label"].mean()))
    return result.assign(score=score).astype(PREDICTIONS)


def with_baseline(predictions: Mapping, splits: pd.DataFrame) -> dict:
    """The predictions by cell and seed and, last, those of the baseline as a further cell of seed 0.

    It is scored on the test scans of the cell that has most of them: ``local`` has none of a client without training scans.
    """
    most = max((frame for by_seed in predictions.values() for frame in by_seed.values()), key=len, default=None)
    return dict(predictions) | ({} if most is None else {CELL: {0: site_only(splits, most)}})
