"""Metrics of a classifier's scores on labelled scans, each also under weights (the counts of a bootstrap resample).

Every metric takes ``labels`` (N,) of 0 (control) and 1 (case), ``scores`` (N,), higher for cases, and ``weights``: none
(all 1), (N,) or, for many weightings at once, (N, R). It returns a float, or (R,) values for (N, R) weights.
Where a class that the metric needs has no weight, or a score is not a finite number, the value is NaN and never a
number that looks like a result; :func:`reason_undefined` says why in words.
Every metric raises ValueError where the shapes do not fit or a label is neither 0 nor 1.
"""

from collections.abc import Callable, Mapping
from functools import wraps

import numpy as np

THRESHOLD = 0.5  # a scan counts as a case from this score on: scores are probabilities of being a case

Metric = Callable[..., "float | np.ndarray"]


def _metric(formula) -> Metric:
    """Gives a formula over (N,), (N,), (N, R) -> (R,) the checks and the shapes that every metric shares."""

    @wraps(formula)
    def metric(labels, scores, weights=None):
        labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
        if labels.ndim != 1 or labels.shape != scores.shape:
            raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be two vectors of one length")
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("labels must be 0 (control) or 1 (case)")
        weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=float)
        if weights.ndim not in (1, 2) or len(weights) != len(labels):
            raise ValueError(f"weights {weights.shape} must be ({len(labels)},) or ({len(labels)}, resamples)")
        columns = weights if weights.ndim == 2 else weights[:, None]  # (N, R)
        values = formula(labels, scores, columns) if np.isfinite(scores).all() else np.full(columns.shape[1], np.nan)
        return values if weights.ndim == 2 else float(values[0])

    return metric


def _ratio(numerator, denominator):
    return np.divide(numerator, denominator, out=np.full(len(denominator), np.nan), where=denominator > 0)


@_metric
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
    twice = below[np.searchsorted(scores[controls], scores[cases], side="left")]  # (P, R)
    twice += below[np.searchsorted(scores[controls], scores[cases], side="right")]
    won = np.einsum("pr,pr->r", weights[cases], twice) / 2
    return _ratio(won, weights[cases].sum(axis=0) * below[-1])


@_metric
def sensitivity(labels, scores, weights):
    """Share of cases that score at least 0.5, in 0..1, higher is better."""
    case = labels == 1
    return _ratio((case & (scores >= THRESHOLD)) @ weights, case @ weights)


@_metric
def specificity(labels, scores, weights):
    """Share of controls that score below 0.5, in 0..1, higher is better."""
    control = labels == 0
    return _ratio((control & (scores < THRESHOLD)) @ weights, control @ weights)


@_metric
def balanced_accuracy(labels, scores, weights):
    """Mean of sensitivity and specificity, in 0..1, higher is better; 0.5 is chance whatever the share of cases."""
    return (sensitivity(labels, scores, weights) + specificity(labels, scores, weights)) / 2


METRICS: Mapping[str, Metric] = {
    "auc": auc,
    "balanced_accuracy": balanced_accuracy,
    "sensitivity": sensitivity,
    "specificity": specificity,
}

_IN_WORDS = {"auc": "AUC", "balanced_accuracy": "balanced accuracy"}
_NEEDS = {"sensitivity": {"case"}, "specificity": {"control"}}  # the others need both classes


def reason_undefined(metric: str, cases: int, controls: int) -> str:
    """Why ``metric`` has no value on a test set of so many cases and controls, in words; empty where it has one."""
    name = _IN_WORDS.get(metric, metric)
    if not cases and not controls:
        return f"no test subject: no {name}"
    if cases and controls:
        return ""
    absent, present = ("control", counted(cases, "case")) if cases else ("case", counted(controls, "control"))
    if absent not in _NEEDS.get(metric, {"case", "control"}):
        return ""
    return f"one class only in test: {present}, no {absent}: no {name}"


def counted(n: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
