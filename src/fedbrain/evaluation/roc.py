"""ROC curves with pointwise bootstrap bands over subjects."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fedbrain.evaluation.bootstrap import resampled_counts, subject_strata
from fedbrain.evaluation.predictions import POOLED, Cell, aligned, of_client, with_persons

RATES = np.linspace(0, 1, 201)  # false positive rates at which curves and bands are given (ours)
MOST = 2000  # resamples of a band, at most (ours)
COLUMNS = ("head", "tuning", "aggregation", "seed", "fpr", "tpr", "low", "high")
_BLOCK = 250  # resamples at once


def sensitivities(labels, scores, rates=RATES, weights=None) -> np.ndarray:
    """Sensitivity at each false positive rate, (G,), or (G, R) for weights (N, R).

    labels (N,) of 0 and 1; scores (N,), higher for cases. The curve joins the thresholds' points by straight lines, so that
    ties count one half, as in the AUC, which is its area; where it rises upright the upper end is taken. NaN without a class.
    Fawcett, Pattern Recognition Letters 27:861-874 (2006), section 4.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    columns = np.ones((len(labels), 1)) if weights is None else np.asarray(weights, dtype=float)
    order = np.argsort(-scores, kind="stable")
    last = (
        np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True]) if len(order) else np.array([], int)
    )  # of equal scores
    case = (labels[order] == 1)[:, None]
    found = np.cumsum(np.where(case, columns[order], 0), axis=0)[last]  # (E, R)
    alarms = np.cumsum(np.where(case, 0, columns[order]), axis=0)[last]
    result = np.full((len(rates), columns.shape[1]), np.nan)
    for column in range(columns.shape[1]):
        hits, misses = found[:, column], alarms[:, column]
        if len(last) and hits[-1] > 0 and misses[-1] > 0:
            result[:, column] = np.interp(rates, np.r_[0, misses / misses[-1]], np.r_[0, hits / hits[-1]])
    return result if weights is not None else result[:, 0]


def roc_curves(
    predictions: Mapping[Cell, Mapping[int, pd.DataFrame]],
    *,
    clients: Sequence[str],
    splits: pd.DataFrame | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The curve of every cell on all test scans together, but those of external cohorts: columns :data:`COLUMNS`, a row per false positive rate.

    predictions, clients, splits: as :func:`fedbrain.evaluation.performance.performance` takes them. Rows without a seed are
    the mean over seeds of the sensitivity at that rate (vertical averaging, Fawcett 2006, section 9) with its pointwise
    percentile interval over subjects, from the first 2,000 of the resamples; it is none of the whole curve at once. Rows
    with a seed are that seed's curve. Without a case or control all are missing.
    """
    tables = []
    for cell, by_seed in predictions.items():
        scans, scores = aligned(cell, by_seed, clients)
        scans = with_persons(scans, splits)
        chosen = of_client(scans, POOLED)
        scans, scores = scans[chosen], scores[:, chosen]
        labels = scans["label"].to_numpy(int)
        curves = np.stack([sensitivities(labels, of_seed) for of_seed in scores])  # (seeds, G)
        low, high = _band(labels, scores, scans["person"].to_numpy(str), min(resamples, MOST), level, seed)
        named = dict(zip(("head", "tuning", "aggregation"), cell)) | {"fpr": RATES}
        tables.append(pd.DataFrame(named | {"tpr": curves.mean(axis=0), "low": low, "high": high}))
        for number, curve in zip(by_seed, curves):
            tables.append(pd.DataFrame(named | {"seed": number, "tpr": curve}))
    table = pd.concat(tables) if tables else pd.DataFrame()
    return table.reindex(columns=list(COLUMNS)).astype({"seed": "Int64"}).reset_index(drop=True)


def _band(labels, scores, persons, resamples, level, seed):
    if len(np.unique(labels)) < 2 or not np.isfinite(scores).all():
        return np.full((2, len(RATES)), np.nan)
    subject, strata = subject_strata(labels, persons)
    means = []
    for counts in resampled_counts(strata, resamples, seed, block=_BLOCK):
        weights = counts[subject]
        means.append(np.mean([sensitivities(labels, of_seed, RATES, weights) for of_seed in scores], axis=0))
    means = np.concatenate(means, axis=1)  # (G, resamples)
    means = means[:, ~np.isnan(means).any(axis=0)]
    if not means.shape[1]:
        return np.full((2, len(RATES)), np.nan)
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=1)
