"""Confidence intervals by bootstrap over subjects.

The unit that is drawn is the subject: all scans of a subject move together, since scans of one head are not
independent. Subjects are drawn with replacement within strata of label, so that every resample has as many cases and
controls as the test set. A subject whose label changes between sessions belongs to the stratum of cases (any positive
scan); its scans keep their own labels. Where such subjects alone supply a class, a resample may lack that class; these
resamples have no value and are left out.

A resample is a column of counts, how often each subject was drawn, and a metric is computed for all columns of a block
at once (:mod:`fedbrain.evaluation.metrics` takes weights), so memory is bounded whatever the number of resamples.
The random stream depends on the seed and the set of subjects alone: every model that is evaluated on the same subjects
meets the same resamples, in whatever order its rows come.

Methods: ``percentile`` and ``bca`` (bias-corrected and accelerated, several samples), Efron and Tibshirani,
An Introduction to the Bootstrap (1993), chapters 13 and 14. Drawing patients as the unit: Rutter, Academic Radiology
7:413-419 (2000).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from fedbrain.evaluation.metrics import Metric, auc

METHODS = ("percentile", "bca")
BLOCK = 1 << 18  # weights (scans x resamples) computed at once: 2 MB, which stays in the cache of one core


class Interval(NamedTuple):
    """A metric's value, its interval over subjects, and its standard deviation over seeds (NaN for one seed).

    undefined: the share of resamples in which the metric has no value; they are left out of the interval.
    """

    value: float
    low: float
    high: float
    seed_sd: float
    undefined: float = 0.0


def auc_interval(labels, scores, subjects, *, resamples=10_000, seed=0, method="percentile", level=0.95):
    """AUC and its interval: ``(auc, low, high)``. Arguments as in :func:`interval`."""
    return interval(auc, labels, scores, subjects, resamples=resamples, seed=seed, method=method, level=level)


def interval(metric: Metric, labels, scores, subjects, *, resamples=10_000, seed=0, method="percentile", level=0.95):
    """A metric over scans and its interval over subjects: ``(value, low, high)``, all NaN where it is undefined.

    labels, scores, subjects: (N,), one entry per scan; equal entries of ``subjects`` are one subject.
    method: ``"percentile"`` or ``"bca"``. level: coverage aimed at, between 0 and 1.
    Where all resamples are equal (complete separation), low = high = value: the bootstrap cannot show the uncertainty.
    Raises ValueError for an unknown method, a level outside (0, 1) or shapes that do not fit.
    """
    result = seed_mean_interval(
        metric, labels, [scores], subjects, resamples=resamples, seed=seed, method=method, level=level
    )
    return result.value, result.low, result.high


def seed_mean_interval(metric: Metric, labels, scores_by_seed, subjects, **options) -> Interval:
    """The mean of a metric over training seeds, its interval over subjects, and its deviation over seeds.

    scores_by_seed: (seeds, N). Every seed sees the same resamples of subjects, so the interval is that of the mean over
    these seeds: it holds the uncertainty of the test subjects, not that of the seeds, which ``seed_sd`` shows (sample
    standard deviation, n - 1). Further arguments as in :func:`interval`.
    """
    return intervals({"metric": metric}, labels, scores_by_seed, subjects, **options)["metric"]


def intervals(
    metrics: Mapping[str, Metric],
    labels,
    scores_by_seed: Sequence,
    subjects,
    *,
    groups=None,
    resamples: int = 10_000,
    seed: int = 0,
    method: str = "percentile",
    level: float = 0.95,
) -> dict[str, Interval]:
    """:func:`seed_mean_interval` for several metrics, which share the resamples.

    groups: (N,) where subjects are to be drawn within strata of label and group (see :func:`subject_strata`).
    A value or a limit that is infinite (a calibration slope under separation) is NaN here.
    """
    check_options(resamples, method, level)
    labels, scores_by_seed = np.asarray(labels), np.asarray(scores_by_seed, dtype=float)
    if scores_by_seed.ndim != 2 or not len(scores_by_seed):
        raise ValueError(f"scores {scores_by_seed.shape} must be (seeds, scans)")
    subject, strata = subject_strata(labels, subjects, groups)
    by_seed = {name: np.array([metric(labels, s) for s in scores_by_seed]) for name, metric in metrics.items()}
    defined = {name: metrics[name] for name, values in by_seed.items() if np.isfinite(values).all()}
    drawn = replicates(defined, labels, scores_by_seed, subject, strata, resamples=resamples, seed=seed)
    influence = jackknife(defined, labels, scores_by_seed, subject, strata) if method == "bca" else {}

    results = {}
    for name, values in by_seed.items():
        value, low, high, undefined = float(values.mean()) if name in defined else np.nan, np.nan, np.nan, 0.0
        if name in defined:
            with np.errstate(invalid="ignore"):  # slopes of +inf and -inf have no mean
                means = drawn[name].mean(axis=0)
                left_out = [stratum.mean(axis=0) for stratum in influence[name]] if influence else None
            low, high = limits(means, value, level, left_out)
            undefined = float(np.isnan(means).mean())
        seed_sd = float(values.std(ddof=1)) if len(values) > 1 and name in defined else np.nan
        results[name] = Interval(value, low, high, seed_sd, undefined)
    return results


def check_options(resamples: int, method: str, level: float) -> None:
    """Raises ValueError where an option of a bootstrap is out of its range."""
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not known; known: {', '.join(METHODS)}")
    if not 0 < level < 1:
        raise ValueError(f"level {level} must be between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples {resamples} must be 1 or more")


def replicates(
    metrics: Mapping[str, Metric], labels, scores, subject, strata, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Each metric of each vector of scores in each resample: (K, resamples) per metric.

    scores: (K, N), for example K seeds or K models on the same scans; all meet the same resamples.
    subject, strata: as :func:`subject_strata` gives them.
    """
    result = {name: np.empty((len(scores), resamples)) for name in metrics}
    if not metrics:
        return result
    done = 0
    for counts in resampled_counts(strata, resamples, seed, block=max(1, BLOCK // max(1, len(labels)))):
        weights = counts[subject]  # (N, block)
        for name, metric in metrics.items():
            for k, vector in enumerate(scores):
                result[name][k, done : done + weights.shape[1]] = metric(labels, vector, weights)
        done += weights.shape[1]
    return result


def jackknife(metrics: Mapping[str, Metric], labels, scores, subject, strata) -> dict[str, list[np.ndarray]]:
    """For each metric the values without each subject in turn: (K, subjects) for each stratum of two subjects or more."""
    result = {name: [] for name in metrics}
    subjects = sum(len(stratum) for stratum in strata)
    block = max(1, BLOCK // max(1, len(labels)))
    for stratum in strata:
        if len(stratum) == 1:  # nothing would be left to estimate from
            continue
        parts = {name: np.empty((len(scores), len(stratum))) for name in metrics}
        for start in range(0, len(stratum), block):
            left_out = stratum[start : start + block]
            counts = np.ones((subjects, len(left_out)))
            counts[left_out, np.arange(len(left_out))] = 0
            weights = counts[subject]
            for name, metric in metrics.items():
                for k, vector in enumerate(scores):
                    parts[name][k, start : start + block] = metric(labels, vector, weights)
        for name in metrics:
            result[name].append(parts[name])
    return result


def limits(values, value: float, level: float, jackknife: Sequence | None = None) -> tuple[float, float]:
    """The interval (low, high) from a statistic's values in the resamples, (R,), and its value on the test set.

    Quantiles at the plain ranks (percentile) or, given the jackknife values of each stratum, at the bias-corrected and
    accelerated ranks. Resamples without a value (NaN) are left out; infinite ones keep their rank, and a limit that
    falls on them is NaN.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan, np.nan
    ranks = np.array([(1 - level) / 2, (1 + level) / 2])
    if jackknife is not None and values.min() < values.max():
        below = (np.mean(values < value) + np.mean(values <= value)) / 2
        if 0 < below < 1:  # else the value lies outside all replicates and the correction is infinite: plain ranks
            bias = ndtri(below)
            shifted = bias + ndtri(ranks)
            ranks = ndtr(bias + shifted / (1 - _acceleration(jackknife) * shifted))
    with np.errstate(invalid="ignore"):  # between two infinite values
        low, high = np.quantile(values, ranks)
    return tuple(float(limit) if np.isfinite(limit) else np.nan for limit in (low, high))


def subject_strata(labels, subjects, groups=None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Each scan's subject as a number, (N,), and the subject numbers of each stratum: controls, cases (if any).

    Subjects are numbered in sorted order, so that the order of the rows plays no part.
    groups: (N,), where given, the strata are those of label within group; a subject whose scans lie in several groups
    belongs to the first of them in sorted order.
    """
    labels, subjects = np.asarray(labels), np.asarray(subjects)
    if labels.shape != subjects.shape:
        raise ValueError(f"labels {labels.shape} and subjects {subjects.shape} must be two vectors of one length")
    known, subject = np.unique(subjects, return_inverse=True)
    positive = np.zeros(len(known), dtype=bool)
    np.logical_or.at(positive, subject, labels == 1)
    strata = [np.flatnonzero(~positive), np.flatnonzero(positive)]
    if groups is not None:
        names, group = np.unique(np.asarray(groups), return_inverse=True)
        if group.shape != subject.shape:
            raise ValueError(f"groups {group.shape} must be one per scan, {subject.shape}")
        first = np.full(len(known), len(names))
        np.minimum.at(first, subject, group)
        strata = [stratum[first[stratum] == number] for number in range(len(names)) for stratum in strata]
    return subject, [stratum for stratum in strata if len(stratum)]


def resampled_counts(strata: Sequence[np.ndarray], resamples: int, seed: int, *, block: int) -> Iterator[np.ndarray]:
    """Yields (subjects, up to ``block``) counts: how often each subject was drawn in each resample.

    Each stratum has a random stream of its own, so the counts do not depend on ``block``.
    """
    streams = [np.random.default_rng([seed, number]) for number in range(len(strata))]
    subjects = sum(len(stratum) for stratum in strata)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        counts = np.empty((subjects, size))
        column = np.arange(size)[:, None]
        for stratum, stream in zip(strata, streams):
            n = len(stratum)
            drawn = stream.integers(n, size=(size, n))
            counts[stratum] = np.bincount((drawn * size + column).ravel(), minlength=n * size).reshape(n, size)
        yield counts


def _acceleration(jackknife):
    """The acceleration constant of several independent samples from their jackknife values (0 where all are equal)."""
    cubes, squares = 0.0, 0.0
    for values in jackknife:
        values = values[np.isfinite(values)]
        n = len(values)
        if not n:
            continue
        influence = (n - 1) * (values.mean() - values)
        cubes += (influence**3).sum() / n**3
        squares += (influence**2).sum() / n**2
    return cubes / (6 * squares**1.5) if squares > 0 else 0.0
