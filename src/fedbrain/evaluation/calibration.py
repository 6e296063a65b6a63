"""Calibration: whether a score of 0.7 means that seven of ten such scans are cases.

Metrics with the signature of :mod:`fedbrain.evaluation.metrics` (labels (N,), scores (N,) in 0..1, weights none, (N,)
or (N, R)), so that they take the same bootstrap, and the points of a calibration curve.

- ``calibration_slope``: b of the logistic recalibration P(case) = expit(a + b logit(score)) by maximum likelihood; 1 is
  right, below 1 the scores are too extreme, above 1 too timid, 0 or less carry nothing or the contrary.
- ``calibration_intercept``: a of the same with b fixed at 1 (calibration in the large); 0 is right, below 0 the scores
  are too high on the whole. Both: Cox, Biometrika 45:562-565 (1958); which intercept to report: Van Calster et al., BMC
  Medicine 17:230 (2019).
- ``ece``: expected calibration error over bins of equal mass.

**Separation.** Where every case scores at least as high as every control the likelihood grows without bound with b: the
slope has no finite value (+inf; -inf where they lie the other way round), and where all scores are equal it is not
determined (NaN). The metric returns these as they are, since a bootstrap needs their rank;
:func:`recalibration` and the tables give no value and a reason instead.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit, ndtri

from fedbrain.evaluation.metrics import Metric, are_probabilities, counted, reason_undefined, weighted
from fedbrain.evaluation.predictions import (
    POOLED,
    Cell,
    aligned,
    of_client,
    refuse_pooled_cohort,
    with_persons,
    without_model,
)
from fedbrain.tables import CALIBRATION

CLIP = 1e-6  # scores are taken as at least this far from 0 and 1, where a logit is infinite (ours)
BINS = 10  # of the calibration error and curve (ours; Guo et al., ICML 2017, use 15 on thousands of images)

# Newton's method: most steps; the last step, after which the error is about its square; the longest step.
_STEPS, _TOLERANCE, _LONGEST = 200, 1e-6, 2.0


class Recalibration(NamedTuple):
    """Logistic recalibration: slope and intercept fitted together, and the intercept with the slope fixed at 1.

    A value that does not exist is NaN, and ``reason`` says why in words (empty where all three exist).
    """

    slope: float
    intercept: float
    in_the_large: float
    reason: str


class CurvePoint(NamedTuple):
    """One bin of a calibration curve: mean score, share of cases with its interval, and what lies in the bin."""

    score: float
    share: float
    low: float
    high: float
    scans: int
    subjects: int
    cases: int


@weighted
def calibration_slope(labels, scores, weights):
    """Slope of the logistic recalibration, 1 is right; +inf or -inf under separation, NaN where it is not determined.

    NaN also on one class, on equal scores and where a score lies outside 0..1. Scores are kept 1e-6 away from 0 and 1.
    """
    return _recalibrate(labels, scores, weights)[0]


@weighted
def calibration_intercept(labels, scores, weights):
    """Calibration in the large: the intercept with the slope fixed at 1, on the logit scale; 0 is right.

    Negative where scores are too high on the whole. NaN on one class and where a score lies outside 0..1.
    """
    return _in_the_large(labels, scores, weights)


@weighted
def ece(labels, scores, weights, bins=BINS):
    """Expected calibration error: the mean over scans of |mean score - share of cases| of the scan's bin; 0 is right.

    Bins of equal mass: a scan lies in bin floor(bins x r), with r the share of scans that score below it plus half the
    share of those that score as it does, so that equal scores are never parted. In 0..1, lower is better. NaN where a
    score lies outside 0..1. Biased upwards on few scans: see :func:`ece_if_calibrated`.
    Equal mass: Nguyen and O'Connor, EMNLP 2015; the bias: Roelofs et al., AISTATS 2022.
    """
    if not are_probabilities(scores):
        return np.full(weights.shape[1], np.nan)
    order = np.argsort(scores, kind="stable")
    weights = weights[order]  # (N, R)
    total = weights.sum(axis=0)
    bin_of = _mass_bins(scores[order], weights, bins)
    excess = weights * (scores - labels)[order, None]
    columns = np.arange(weights.shape[1])
    cells = np.bincount(
        (bin_of * weights.shape[1] + columns).ravel(), excess.ravel(), minlength=bins * weights.shape[1]
    )
    error = np.abs(cells.reshape(bins, -1)).sum(axis=0)
    return np.divide(error, total, out=np.full(len(total), np.nan), where=total > 0)


CALIBRATION_METRICS: Mapping[str, Metric] = {
    "calibration_slope": calibration_slope,
    "calibration_intercept": calibration_intercept,
    "ece": ece,
}


def recalibration(labels, scores) -> Recalibration:
    """Logistic recalibration of one model on one set of scans, with a reason where a value does not exist.

    labels (N,) of 0 and 1, scores (N,) in 0..1. Raises ValueError as a metric does.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    in_the_large = calibration_intercept(labels, scores)
    slope = calibration_slope(labels, scores)
    reason = reason_uncalibrated("calibration_slope", labels, scores)
    if not np.isfinite(slope):
        return Recalibration(np.nan, np.nan, in_the_large, reason)
    ones = np.ones((len(labels), 1))
    return Recalibration(slope, float(_recalibrate(labels, scores, ones)[1][0]), in_the_large, "")


def reason_uncalibrated(metric: str, labels, scores) -> str:
    """Why a metric of this module has no value on these scans, in words; empty where it has one."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    missing = reason_undefined(metric, int((labels == 1).sum()), int((labels == 0).sum()))
    if missing:
        return missing
    if not np.isfinite(scores).all():
        return f"{counted(int((~np.isfinite(scores)).sum()), 'scan')} without a finite score"
    if not are_probabilities(scores):
        return "scores outside 0 to 1 are no probabilities: no calibration"
    if metric != "calibration_slope":
        return ""
    slope = calibration_slope(labels, scores)
    if slope == np.inf:
        return "the score separates cases from controls: the calibration slope has no finite value"
    if slope == -np.inf:
        return "the score separates cases from controls the wrong way round: the calibration slope has no finite value"
    return "" if np.isfinite(slope) else "all scans have one score: the calibration slope is not determined"


def calibration_curve(labels, scores, subjects, *, bins: int = BINS, level: float = 0.95) -> list[CurvePoint]:
    """Points of the calibration curve, one per bin of equal mass that holds a scan (bins as in :func:`ece`).

    labels, scores, subjects: (N,), one entry per scan. The interval of a bin's share of cases is Wilson's score
    interval with the number of *subjects* in the bin as the sample size: exact use of it with one scan per subject, and
    on the safe side with several, whose scans are not independent (ours). It has a width also where all or none of the
    bin are cases, where a bootstrap has none. Source: Wilson, JASA 22:209-212 (1927).
    Raises ValueError where shapes do not fit, a score is not in 0..1, or bins or level are out of range.
    """
    labels, scores, subjects = np.asarray(labels), np.asarray(scores, dtype=float), np.asarray(subjects)
    if labels.ndim != 1 or not labels.shape == scores.shape == subjects.shape:
        raise ValueError(
            f"labels {labels.shape}, scores {scores.shape}, subjects {subjects.shape} must be of one length"
        )
    if not are_probabilities(scores):
        raise ValueError("scores must lie in 0..1: a calibration curve is of probabilities")
    if bins < 1 or not 0 < level < 1:
        raise ValueError(f"bins {bins} must be 1 or more and level {level} between 0 and 1")
    order = np.argsort(scores, kind="stable")
    bin_of = np.empty(len(scores), dtype=int)
    bin_of[order] = _mass_bins(scores[order], np.ones((len(scores), 1)), bins)[:, 0]
    points = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        share, people = float(labels[inside].mean()), len(np.unique(subjects[inside]))
        low, high = wilson_interval(share, people, level)
        cases = int(labels[inside].sum())
        points.append(CurvePoint(float(scores[inside].mean()), share, low, high, int(inside.sum()), people, cases))
    return points


def wilson_interval(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share observed on n independent units, within 0..1."""
    z = ndtri((1 + level) / 2)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def ece_if_calibrated(scores, subjects, *, bins: int = BINS, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """What the calibration error would be by chance alone if the scores were right: (mean, 95th percentile).

    Labels are drawn with the scores as probabilities, one number per subject, so that scans of a subject agree as far as
    their scores let them (ours). An ECE below the percentile is no sign of bad calibration. NaN where a score lies
    outside 0..1. Source of the idea: consistency resampling, Broecker and Smith, Weather and Forecasting 22:651 (2007).
    """
    scores = np.asarray(scores, dtype=float)
    if not len(scores) or not are_probabilities(scores):
        return np.nan, np.nan
    subject = np.unique(np.asarray(subjects), return_inverse=True)[1]
    order = np.argsort(scores, kind="stable")
    bin_of = _mass_bins(scores[order], np.ones((len(scores), 1)), bins)[:, 0]
    inside = (bin_of == np.arange(bins)[:, None]).astype(float)  # (bins, N)
    drawn = np.random.default_rng(seed).random((subject.max() + 1, draws))[subject[order]]
    errors = np.abs(inside @ (scores[order, None] - (drawn < scores[order, None]))).sum(axis=0) / len(scores)
    return float(errors.mean()), float(np.quantile(errors, 0.95))


def calibration_curves(
    predictions: Mapping[Cell, Mapping[int, pd.DataFrame]],
    *,
    clients: Sequence[str],
    bins: int = BINS,
    level: float = 0.95,
    seed: int = 0,
    splits: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The curve of every cell and seed on the test scans of each client and of all: a table :data:`CALIBRATION`.

    predictions, clients, splits: as :func:`fedbrain.evaluation.performance.performance` takes them. A curve that does
    not exist (no test subject, a score that is missing or no probability) is one row with a note. A curve with fewer
    than five subjects in a bin has a note, too (five is ours).
    Raises StudyError where predictions do not fit and ValueError for bins or a level out of range.
    """
    refuse_pooled_cohort(clients)
    absent, rows = without_model(predictions, splits), []
    for cell, by_seed in predictions.items():
        scans, scores = aligned(cell, by_seed, clients)
        scans = with_persons(scans, splits)
        for client in (*clients, POOLED):
            mask = of_client(scans, client)
            labels, persons = scans["label"].to_numpy(int)[mask], scans["person"].to_numpy(str)[mask]
            for number, of_seed in zip(by_seed, scores[:, mask]):
                named = dict(zip(("head", "tuning", "aggregation"), cell)) | {"client": client, "seed": number}
                said = absent.get((cell, client), "")
                rows += [named | row for row in _curve_rows(labels, of_seed, persons, bins, level, seed, said)]
    return pd.DataFrame(rows, columns=list(CALIBRATION)).astype(CALIBRATION)


def _curve_rows(labels, scores, persons, bins, level, seed, said):
    if not len(labels):
        return [{"note": said or "no test subject: no curve"}]
    if not np.isfinite(scores).all() or not are_probabilities(scores):
        return [{"note": reason_uncalibrated("ece", labels, scores)}]
    by_chance = dict(
        zip(("ece_by_chance", "ece_by_chance_95"), ece_if_calibrated(scores, persons, bins=bins, seed=seed))
    )
    points = calibration_curve(labels, scores, persons, bins=bins, level=level)
    fewest = min(point.subjects for point in points)
    few = f"{counted(fewest, 'subject')} in a bin: a curve for the eye alone" if fewest < 5 else ""
    note = "; ".join(filter(None, (said, few))) or None
    whole = by_chance | {"ece": ece(labels, scores, bins=bins), "note": note}
    return [{"bin": place} | point._asdict() | whole for place, point in enumerate(points, start=1)]


def _mass_bins(scores, weights, bins):
    """The bin of each scan under each weighting, (N, R) of 0..bins - 1. scores (N,) ascending, weights (N, R)."""
    if not len(scores):
        return np.zeros(weights.shape, dtype=np.int64)
    reached = np.cumsum(weights, axis=0)
    starts = np.flatnonzero(np.r_[True, np.diff(scores) != 0])
    group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(scores)]))
    upper = reached[np.r_[starts[1:], len(scores)] - 1]  # (distinct scores, R): weight up to and with the score
    lower = np.r_[np.zeros((1, weights.shape[1])), upper[:-1]]
    total = np.maximum(reached[-1], np.finfo(float).tiny)
    place = np.floor((bins * (lower + upper)) / (2 * total)).astype(np.int64)
    return np.minimum(place, bins - 1)[group]


def _usable(labels, scores, weights):
    """Logits (N,) and which columns have weight in both classes, (R,); None where a score is no probability."""
    if not are_probabilities(scores):
        return None
    case = labels == 1
    return logit(np.clip(scores, CLIP, 1 - CLIP)), (weights[case].sum(axis=0) > 0) & (weights[~case].sum(axis=0) > 0)


def _recalibrate(labels, scores, weights):
    """Slope and intercept of each weighting, (R,) each; the slope is infinite under separation."""
    slope, intercept = np.full((2, weights.shape[1]), np.nan)
    usable = _usable(labels, scores, weights)
    if usable is None or not len(labels):
        return slope, intercept
    x, both = usable
    # Who scores highest and lowest among those with weight decides whether the slope is finite.
    present = weights > 0
    ends = {}
    for label in (0, 1):
        of_class = labels == label
        values = x[of_class, None]
        ends[label] = (
            np.where(present[of_class], values, np.inf).min(axis=0, initial=np.inf),
            np.where(present[of_class], values, -np.inf).max(axis=0, initial=-np.inf),
        )
    (control_low, control_high), (case_low, case_high) = ends[0], ends[1]
    equal = both & (np.minimum(control_low, case_low) == np.maximum(control_high, case_high))
    upwards = both & ~equal & (case_low >= control_high)
    downwards = both & ~equal & (case_high <= control_low)
    slope[upwards], slope[downwards] = np.inf, -np.inf

    left = np.flatnonzero(both & ~equal & ~upwards & ~downwards)
    centre, scale = x.mean(), x.std() or 1.0
    z = (x - centre) / scale  # (N,): keeps Newton's system well conditioned
    start = np.zeros((2, 1))
    if weights.shape[1] > 1:  # resamples lie near the fit to all scans
        whole = _newton((labels == 1).astype(float), z, np.ones((len(z), 1)), start)
        start = whole if np.isfinite(whole).all() else start
    a, b = _newton((labels == 1).astype(float), z, weights[:, left], start)
    slope[left], intercept[left] = b / scale, a - b * centre / scale
    return slope, intercept


def _newton(y, z, weights, start):
    """Maximum likelihood of P(y = 1) = expit(a + b z) under each weighting: (2, R), NaN where it does not converge."""
    result = np.full((2, weights.shape[1]), np.nan)
    left, current = np.arange(weights.shape[1]), np.repeat(start, weights.shape[1], axis=1)
    powers = np.stack([np.ones_like(z), z, z**2])  # (3, N)
    target = powers[:2] @ (weights * y[:, None])  # (2, R)
    for _ in range(_STEPS):
        if not len(left):
            break
        p = expit(current[0] + z[:, None] * current[1])  # (N, R)
        expected = weights * p
        g0, g1 = target - powers[:2] @ expected
        h00, h01, h11 = powers @ (expected * (1 - p))
        determinant = np.maximum(h00 * h11 - h01**2, 1e-300)
        steps = np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0]) / determinant
        longest = np.abs(steps).max(axis=0)
        current = current + steps * np.minimum(1, _LONGEST / np.maximum(longest, 1e-300))
        done = longest <= _TOLERANCE * (1 + np.abs(current).max(axis=0))
        if done.any():
            result[:, left[done]] = current[:, done]
            current, weights, target, left = current[:, ~done], weights[:, ~done], target[:, ~done], left[~done]
    return result


def _in_the_large(labels, scores, weights):
    """The intercept of each weighting with the slope fixed at 1, (R,)."""
    result = np.full(weights.shape[1], np.nan)
    usable = _usable(labels, scores, weights)
    if usable is None or not len(labels):
        return result
    x, both = usable
    left = np.flatnonzero(both)
    w, cases = weights[:, left], (labels == 1) @ weights[:, left]
    # The expected number of cases rises with the intercept: Newton's steps within a bracket that holds the root.
    share = logit(cases / w.sum(axis=0))
    low, high = share - x.max(), share - x.min()
    a = np.clip(0, low, high)
    for _ in range(_STEPS):
        if not len(left):
            break
        p = expit(a + x[:, None])
        expected = w * p
        gap, curvature = cases - expected.sum(axis=0), (expected * (1 - p)).sum(axis=0)
        low, high = np.where(gap > 0, a, low), np.where(gap > 0, high, a)
        proposed = a + gap / np.maximum(curvature, 1e-300)
        inside = (proposed >= low) & (proposed <= high)
        proposed = np.where(inside, proposed, (low + high) / 2)
        done = np.abs(proposed - a) <= _TOLERANCE
        a = proposed
        result[left[done]] = a[done]
        if done.any():
            a, low, high, cases, w, left = a[~done], low[~done], high[~done], cases[~done], w[:, ~done], left[~done]
    return result
