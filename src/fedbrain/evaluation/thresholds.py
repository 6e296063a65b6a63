"""Thresholds: from which score on a scan is called a case, chosen without a look at the test subjects.

A threshold that is chosen on the scans on which sensitivity and specificity are then reported makes both look better
than they are (Leeflang et al., Clinical Chemistry 54:729-737, 2008). So the only choice here takes validation scores,
and :func:`refuse_shared_persons` stops a mix-up.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedbrain.errors import StudyError
from fedbrain.evaluation.metrics import THRESHOLD, Metric, balanced_accuracy, sensitivity, specificity
from fedbrain.evaluation.predictions import with_persons

RULES = ("fixed", "youden")


class Threshold(NamedTuple):
    """A threshold, the rule it comes from, and its sensitivity and specificity on the scans it was chosen on.

    The latter two are too good to be reported as performance. ``reason`` says why a rule could not be followed and the
    fixed 0.5 stands instead; empty otherwise.
    """

    value: float
    rule: str
    sensitivity: float
    specificity: float
    reason: str


def choose_threshold(labels, scores, *, rule: str = "youden") -> Threshold:
    """The threshold from which on a scan is called a case, from *validation* scans.

    labels (N,) of 0 and 1, scores (N,). rule: ``"fixed"`` is 0.5 whatever the scores; ``"youden"`` is the largest
    sensitivity + specificity - 1 (Youden, Cancer 3:32-35, 1950). Candidates are the middles between neighbouring scores:
    a threshold on a score itself would hang on rounding. Among equally good ones the nearest to 0.5 is taken, and of two
    equally near the lower (ours).
    With one class only, no scan, equal scores, a score that is not finite, or where no threshold is better than chance,
    the value is 0.5, with a reason.
    Raises ValueError for an unknown rule and as a metric does.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is not known; known: {', '.join(RULES)}")
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    value, reason = THRESHOLD, ""
    if rule == "youden":
        value, reason = _youden(labels, scores)
    rates = (rate(labels, scores, threshold=value) for rate in (sensitivity, specificity))
    return Threshold(value, rule, *rates, reason)


def metrics_at(threshold: float) -> Mapping[str, Metric]:
    """Sensitivity, specificity and balanced accuracy at a threshold, as metrics that a bootstrap can take."""
    return {
        metric.__name__: lambda labels, scores, weights=None, metric=metric: metric(
            labels, scores, weights, threshold=threshold
        )
        for metric in (sensitivity, specificity, balanced_accuracy)
    }


def called(scores, threshold: float) -> np.ndarray:
    """1.0 where a score reaches the threshold, else 0.0, NaN where it is missing: (N,), a score for the metrics at 0.5.

    Brings seeds with thresholds of their own onto one scale.
    """
    scores = np.asarray(scores, dtype=float)
    return np.where(np.isnan(scores), np.nan, (scores >= threshold).astype(float))


def refuse_shared_persons(validation: pd.DataFrame, test: pd.DataFrame, splits: pd.DataFrame | None = None) -> None:
    """Raises StudyError where a person of the test scans is among the validation scans (columns cohort, subject).

    splits: table SPLITS, which says what subjects are one person.
    """
    shared = set(with_persons(validation, splits)["person"]) & set(with_persons(test, splits)["person"])
    if shared:
        raise StudyError(
            f"persons in both the validation and the test scans: {len(shared)}; a threshold chosen there would flatter "
            "the test; make predictions of both from the same splits"
        )


def _youden(labels, scores):
    for label, noun in ((1, "case"), (0, "control")):
        if not (labels == label).any():
            return THRESHOLD, f"no {noun} among the validation scans: {THRESHOLD} stands"
    if not np.isfinite(scores).all():
        return THRESHOLD, f"a score is not finite: {THRESHOLD} stands"
    distinct = np.unique(scores)
    if len(distinct) == 1:
        return THRESHOLD, f"all scans have one score: {THRESHOLD} stands"
    candidates = (distinct[1:] + distinct[:-1]) / 2
    cases, controls = (np.sort(scores[labels == label]) for label in (1, 0))
    missed = np.searchsorted(cases, candidates, side="left") / len(cases)
    spared = np.searchsorted(controls, candidates, side="left") / len(controls)
    index = spared - missed  # sensitivity + specificity - 1
    if index.max() <= 0:
        return THRESHOLD, f"no threshold is better than chance: {THRESHOLD} stands"
    best = candidates[index >= index.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - THRESHOLD))]), ""
