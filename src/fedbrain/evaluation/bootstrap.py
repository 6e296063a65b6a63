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
    """A metric's value, its interval over subjects, and its standard deviation over seeds (NaN for one seed)."""

    value: float
    low: float
    high: float
    seed_sd: float


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
    resamples: int = 10_000,
    seed: int = 0,
    method: str = "percentile",
    level: float = 0.95,
) -> dict[str, Interval]:
    """:func:`seed_mean_interval` for several metrics, which share the resamples."""
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not known; known: {', '.join(METHODS)}")
    if not 0 < level < 1:
        raise ValueError(f"level {level} must be between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples {resamples} must be 1 or more")
    labels, scores_by_seed = np.asarray(labels), np.asarray(scores_by_seed, dtype=float)
    if scores_by_seed.ndim != 2 or not len(scores_by_seed):
        raise ValueError(f"scores {scores_by_seed.shape} must be (seeds, scans)")
    subject, strata = subject_strata(labels, subjects)
    by_seed = {name: np.array([metric(labels, s) for s in scores_by_seed]) for name, metric in metrics.items()}
    defined = {name: metrics[name] for name, values in by_seed.items() if np.isfinite(values).all()}

    replicates = {name: np.empty(resamples) for name in defined}
    jackknives = {}
    if defined:
        done = 0
        for counts in resampled_counts(strata, resamples, seed, block=max(1, BLOCK // max(1, len(labels)))):
            weights = counts[subject]  # (N, block)
            for name, metric in defined.items():
                replicates[name][done : done + weights.shape[1]] = _seed_mean(metric, labels, scores_by_seed, weights)
            done += weights.shape[1]
        if method == "bca":
            jackknives = _jackknife(defined, labels, scores_by_seed, subject, strata)

    results = {}
    for name, values in by_seed.items():
        value, low, high = float(values.mean()), np.nan, np.nan
        if name in defined:
            low, high = _limits(replicates[name], value, level, jackknives.get(name))
        results[name] = Interval(value, low, high, float(values.std(ddof=1)) if len(values) > 1 else np.nan)
    return results


def subject_strata(labels, subjects) -> tuple[np.ndarray, list[np.ndarray]]:
    """Each scan's subject as a number, (N,), and the subject numbers of each stratum: controls, cases (if any).

    Subjects are numbered in sorted order, so that the order of the rows plays no part.
    """
    labels, subjects = np.asarray(labels), np.asarray(subjects)
    if labels.shape != subjects.shape:
        raise ValueError(f"labels {labels.shape} and subjects {subjects.shape} must be two vectors of one length")
    known, subject = np.unique(subjects, return_inverse=True)
    positive = np.zeros(len(known), dtype=bool)
    np.logical_or.at(positive, subject, labels == 1)
    return subject, [stratum for stratum in (np.flatnonzero(~positive), np.flatnonzero(positive)) if len(stratum)]


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


def _seed_mean(metric, labels, scores_by_seed, weights):
    return np.mean([metric(labels, scores, weights) for scores in scores_by_seed], axis=0)


def _limits(replicates, value, level, jackknife):
    """Quantiles of the replicates, at the plain or (given the jackknife) the bias-corrected, accelerated ranks."""
    replicates = replicates[np.isfinite(replicates)]
    if not len(replicates):
        return np.nan, np.nan
    ranks = np.array([(1 - level) / 2, (1 + level) / 2])
    if jackknife is not None and replicates.min() < replicates.max():
        below = (np.mean(replicates < value) + np.mean(replicates <= value)) / 2
        if 0 < below < 1:  # else the value lies outside all replicates and the correction is infinite: plain ranks
            bias = ndtri(below)
            shifted = bias + ndtri(ranks)
            ranks = ndtr(bias + shifted / (1 - _acceleration(jackknife) * shifted))
    low, high = np.quantile(replicates, ranks)
    return float(low), float(high)


def _jackknife(metrics, labels, scores_by_seed, subject, strata):
    """For each metric the values without each subject in turn, one array per stratum of two subjects or more."""
    result = {name: [] for name in metrics}
    subjects = sum(len(stratum) for stratum in strata)
    block = max(1, BLOCK // len(labels))
    for stratum in strata:
        if len(stratum) == 1:  # nothing would be left to estimate from
            continue
        parts = {name: [] for name in metrics}
        for start in range(0, len(stratum), block):
            left_out = stratum[start : start + block]
            counts = np.ones((subjects, len(left_out)))
            counts[left_out, np.arange(len(left_out))] = 0
            for name, metric in metrics.items():
                parts[name].append(_seed_mean(metric, labels, scores_by_seed, counts[subject]))
        for name in metrics:
            result[name].append(np.concatenate(parts[name]))
    return result


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
