"""Thresholds: from which score on a scan is called a case, chosen without a look at the test subjects.

A threshold that is chosen on the scans on which sensitivity and specificity are then reported makes both look better
than they are (Leeflang et al., Clinical Chemistry 54:729-737, 2008). So the only choice here takes validation scores,
and :func:`refuse_shared_persons` stops a mix-up.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedbrain.errors import StudyError
from fedbrain.evaluation.bootstrap import Interval, intervals
from fedbrain.evaluation.metrics import (
    THRESHOLD,
    Metric,
    balanced_accuracy,
    reason_undefined,
    sensitivity,
    specificity,
)
from fedbrain.evaluation.predictions import (
    POOLED,
    Cell,
    aligned,
    cell_name,
    of_client,
    refuse_pooled_cohort,
    with_persons,
    without_model,
)
from fedbrain.tables import THRESHOLDS

RULES = ("fixed", "youden")
STRANGE = "external: chosen on the validation scans of the cohorts that train, pooled"


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


def performance_at_thresholds(
    predictions: Mapping[Cell, Mapping[int, pd.DataFrame]],
    validation: Mapping[Cell, Mapping[int, pd.DataFrame]],
    *,
    clients: Sequence[str],
    rules: Sequence[str] = RULES,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    method: str = "percentile",
    splits: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Sensitivity, specificity and balanced accuracy of the test scans at chosen thresholds: a table THRESHOLDS.

    predictions: of the test scans, validation: of the validation scans, tables PREDICTIONS for the same cells and
    seeds. Each seed's threshold is chosen on validation scans: a client's on its own, "pooled" on those of all clients, and so is
    that of an external cohort, which has none.
    The interval takes the thresholds as given: it is that of this rule's outcome on further test subjects, and does not
    hold the uncertainty of the choice, which ``threshold_sd`` and few validation scans hint at.
    Raises StudyError where predictions do not fit, validation lacks a cell or seed, or a person is in both.
    """
    refuse_pooled_cohort(clients)
    options = {"resamples": resamples, "level": level, "seed": seed, "method": method}
    absent, rows = without_model(predictions, splits), []
    for cell, by_seed in predictions.items():
        lacking = [number for number in by_seed if number not in validation.get(cell, {})]
        if lacking:
            raise StudyError(f"{cell_name(cell)}: no validation predictions of seed {lacking[0]}; train the cell again")
        scans, scores = aligned(cell, by_seed, clients)
        seen, chosen_on = aligned(cell, {number: validation[cell][number] for number in by_seed}, clients)
        refuse_shared_persons(seen, scans, splits)
        scans = with_persons(scans, splits)
        for client in (*clients, POOLED):
            test, own = of_client(scans, client), of_client(seen, client)
            said = ""
            if test.any() and scans.loc[test, "external"].all():
                own, said = of_client(seen, POOLED), STRANGE
            labels = seen["label"].to_numpy(int)[own]
            for rule in rules:
                found = [choose_threshold(labels, of_seed, rule=rule) for of_seed in chosen_on[:, own]]
                named = dict(zip(("head", "tuning", "aggregation"), cell)) | {"client": client, "rule": rule}
                lacking = absent.get((cell, client), "")
                asked = "; ".join(filter(None, (lacking, said if rule != "fixed" else "")))
                rows += [named | row for row in _threshold_rows(scans[test], scores[:, test], found, asked, options)]
    return pd.DataFrame(rows, columns=list(THRESHOLDS)).astype(THRESHOLDS)


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


def _threshold_rows(scans, scores, thresholds, said, options):
    labels, persons = scans["label"].to_numpy(int), scans["person"].to_numpy(str)
    people, positives = len(np.unique(persons)), len(np.unique(persons[labels == 1]))
    values = np.array([threshold.value for threshold in thresholds])
    calls = [called(of_seed, value) for of_seed, value in zip(scores, values)]
    results = intervals(metrics_at(THRESHOLD), labels, calls, persons, **options) if people else {}
    whole = {
        "threshold": float(values.mean()),
        "threshold_sd": float(values.std(ddof=1)) if len(values) > 1 else np.nan,
        "seeds": len(values),
        "subjects": people,
        "positives": positives,
        "negatives": people - positives,
    }
    chosen_note = next((threshold.reason for threshold in thresholds if threshold.reason), "")
    rows = []
    for metric in metrics_at(THRESHOLD):
        found = results.get(metric, Interval(*(np.nan,) * 4))
        note = reason_undefined(metric, int((labels == 1).sum()), int((labels == 0).sum()))
        if said and not people:
            note = ""
        elif not note and np.isnan(found.value):
            note = "a scan without a finite score: no value"
        elif not note and found.low == found.high:
            note = "all resamples equal: the interval has no width and cannot show the uncertainty"
        row = dict(zip(("value", "low", "high", "seed_sd"), found)) | {"metric": metric}
        rows.append(whole | row | {"note": "; ".join(filter(None, (note, said, chosen_note))) or None})
    return rows


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
