"""Metrics of a classifier's scores on labelled scans, each also under weights (the counts of a bootstrap resample).

Every metric takes ``labels`` (N,) of 0 (control) and 1 (case), ``scores`` (N,), higher for cases, and ``weights``: none
(all 1), (N,) or, for many weightings at once, (N, R). It returns a float, or (R,) values for (N, R) weights.
Where a class that the metric needs has no weight, or a score is not a finite number, the value is NaN and never a
number that looks like a result; :func:`reason_undefined` says why in words. Integer weights are copies: a scan of
weight 2 counts as two scans.
Every metric raises ValueError where the shapes do not fit or a label is neither 0 nor 1.

Calibration is in :mod:`fedbrain.evaluation.calibration`, thresholds other than 0.5 in
:mod:`fedbrain.evaluation.thresholds`.
"""

from collections.abc import Callable, Mapping
from functools import wraps

import numpy as np

THRESHOLD = 0.5  # a scan counts as a case from this score on: scores are probabilities of being a case

Metric = Callable[..., "float | np.ndarray"]


def weighted(formula) -> Metric:
    """Gives a formula over (N,), (N,), (N, R) -> (R,) the checks and the shapes that every metric shares."""

    @wraps(formula)
    def metric(labels, scores, weights=None, **options):
        labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
        if labels.ndim != 1 or labels.shape != scores.shape:
            raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be two vectors of one length")
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("labels must be 0 (control) or 1 (case)")
        weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=float)
        if weights.ndim not in (1, 2) or len(weights) != len(labels):
            raise ValueError(f"weights {weights.shape} must be ({len(labels)},) or ({len(labels)}, resamples)")
        columns = weights if weights.ndim == 2 else weights[:, None]  # (N, R)
        finite = np.isfinite(scores).all()
        values = formula(labels, scores, columns, **options) if finite else np.full(columns.shape[1], np.nan)
        return values if weights.ndim == 2 else float(values[0])

    return metric


def are_probabilities(scores) -> bool:
    """Whether all scores lie in 0..1, so that they can be read as probabilities."""
    scores = np.asarray(scores, dtype=float)
    return bool(((scores >= 0) & (scores <= 1)).all())


def _ratio(numerator, denominator):
    return np.divide(numerator, denominator, out=np.full(len(denominator), np.nan), where=denominator > 0)


@weighted
def auc(labels, scores, weights):
    """Area under the ROC curve: the chance that a random case scores above a random control, ties counting one half.

    The Mann-Whitney statistic over (cases x controls), by ranks, in 0..1, higher is better; 0.5 is chance.
    Source: Hanley and McNeil, Radiology 143:29-36 (1982).
    """
    cases, controls = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    controls = controls[np.argsort(scores[controls], kind="stable")]
    below = np.zeros((len(controls) + 1, weights.shape[1]))  # (M + 1, R): weight of the k lowest controls
    np.cumsum(weights[controls], axis=0, out=below[1:])
    # Controls below a case plus controls not above it: twice the midrank, so that a tie counts one half.
    lower, upper = (np.searchsorted(scores[controls], scores[cases], side=side) for side in ("left", "right"))
    twice = below[lower]  # (P, R)
    twice += twice if np.array_equal(lower, upper) else below[upper]
    of_cases = weights[cases]
    won = np.einsum("pr,pr->r", of_cases, twice) / 2
    return _ratio(won, of_cases.sum(axis=0) * below[-1])


@weighted
def sensitivity(labels, scores, weights, threshold=THRESHOLD):
    """Share of cases that score at least the threshold (0.5), in 0..1, higher is better."""
    case = labels == 1
    return _ratio((case & (scores >= threshold)) @ weights, case @ weights)


@weighted
def specificity(labels, scores, weights, threshold=THRESHOLD):
    """Share of controls that score below the threshold (0.5), in 0..1, higher is better."""
    control = labels == 0
    return _ratio((control & (scores < threshold)) @ weights, control @ weights)


@weighted
def balanced_accuracy(labels, scores, weights, threshold=THRESHOLD):
    """Mean of sensitivity and specificity, in 0..1, higher is better; 0.5 is chance whatever the share of cases."""
    rates = (rate(labels, scores, weights, threshold=threshold) for rate in (sensitivity, specificity))
    return sum(rates) / 2


@weighted
def average_precision(labels, scores, weights):
    """Area under the precision-recall curve: the sum over score steps of (gain in recall) x (precision at the step).

    In 0..1, higher is better; chance is the share of cases, so values of cohorts with other shares cannot be compared.
    No interpolation between steps; scans of one score are one step. NaN without cases, and without controls, where it
    would be 1 for any model. Source: Boyd, Eng and Page, ECML PKDD 2013, section 3 (average precision).
    """
    cases, controls = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    cases = cases[np.argsort(-scores[cases], kind="stable")]
    controls = controls[np.argsort(-scores[controls], kind="stable")]
    hits = np.zeros((len(cases) + 1, weights.shape[1]))  # (P + 1, R): weight of the k highest cases
    alarms = np.zeros((len(controls) + 1, weights.shape[1]))  # (M + 1, R)
    np.cumsum(weights[cases], axis=0, out=hits[1:])
    np.cumsum(weights[controls], axis=0, out=alarms[1:])
    # What is called from each case's score on: all that score as it does come with it.
    found = hits[np.searchsorted(-scores[cases], -scores[cases], side="right")]  # (P, R)
    called = found + alarms[np.searchsorted(-scores[controls], -scores[cases], side="right")]
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    gained = np.einsum("pr,pr->r", weights[cases], precision)
    return _ratio(np.where(alarms[-1] > 0, gained, np.nan), hits[-1])


@weighted
def brier(labels, scores, weights):
    """Mean squared difference between score and label, in 0..1, lower is better.

    The score is taken as the probability of a case: NaN where one lies outside 0..1. A model that gives every scan the
    share of cases p has p (1 - p). Defined on one class, too. Source: Brier, Monthly Weather Review 78:1-3 (1950).
    """
    if not are_probabilities(scores):
        return np.full(weights.shape[1], np.nan)
    return _ratio((scores - labels) ** 2 @ weights, weights.sum(axis=0))


METRICS: Mapping[str, Metric] = {
    "auc": auc,
    "balanced_accuracy": balanced_accuracy,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "average_precision": average_precision,
    "brier": brier,
}

_IN_WORDS = {"auc": "AUC", "brier": "Brier score", "ece": "expected calibration error"}
_NEEDS = {  # the others need both classes
    "sensitivity": {"case"},
    "specificity": {"control"},
    "brier": set(),
    "ece": set(),
}


def reason_undefined(metric: str, cases: int, controls: int) -> str:
    """Why ``metric`` has no value on a test set of so many cases and controls, in words; empty where it has one."""
    name = in_words(metric)
    if not cases and not controls:
        return f"no test subject: no {name}"
    if cases and controls:
        return ""
    absent, present = ("control", counted(cases, "case")) if cases else ("case", counted(controls, "control"))
    if absent not in _NEEDS.get(metric, {"case", "control"}):
        return ""
    return f"one class only in test: {present}, no {absent}: no {name}"


def in_words(metric: str) -> str:
    """``average precision`` for ``average_precision``."""
    return _IN_WORDS.get(metric, metric.replace("_", " "))


def counted(n: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
