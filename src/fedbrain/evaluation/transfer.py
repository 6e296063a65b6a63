"""How far a model carries to a cohort that it has never seen: one that was left out of its training, or an external one.

Of a cohort that was left out there are two models: one trained without it ("unseen") and the cell itself, trained with its training
subjects ("seen"). Both meet the same test subjects, so their difference is paired; what it costs not to have been in the federation.
The unseen model is also tested on all subjects of the cohort, of whom it knows none: several times as many as the test subjects.
Persons of the cohort who train or validate in another one are known to the model and left out.

The mean over the cohorts that were left out takes them as drawn from more cohorts of that kind (:mod:`fedbrain.evaluation.meta_analysis`):
AUCs on the logit scale, differences as they are, with DeLong's variances. The models share most of their training data, which
no such interval knows; and with three to five cohorts it is wide, as it should be.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from fedbrain.cohorts.splits import external_cohorts, known_without
from fedbrain.errors import StudyError
from fedbrain.evaluation.bootstrap import check_options, intervals
from fedbrain.evaluation.calibration import CALIBRATION_METRICS, reason_uncalibrated
from fedbrain.evaluation.comparison import analytic_interval, compare_cells, delong_covariance, holm
from fedbrain.evaluation.meta_analysis import random_effects
from fedbrain.evaluation.metrics import METRICS, counted, reason_undefined
from fedbrain.evaluation.performance import ANALYTIC, CALIBRATION_RESAMPLES
from fedbrain.evaluation.predictions import Cell, aligned, cell_name, of_client, with_persons
from fedbrain.tables import TRANSFER

LEFT_OUT, EXTERNAL = "left out", "external"
UNSEEN, SEEN, DIFFERENCE = "unseen", "seen", "difference"
TEST, ALL = "test", "all"
MEAN = "mean"  # the cohort's name in rows of the mean over cohorts
COMPARED = ("auc", "balanced_accuracy", "brier")  # metrics of which differences are given
ROWS = ("auc", ANALYTIC, *(metric for metric in METRICS | CALIBRATION_METRICS if metric != "auc"))


def transfer(
    predictions: Mapping[Cell, Mapping[int, pd.DataFrame]],
    without: Mapping[str, Mapping[Cell, Mapping[int, pd.DataFrame]]],
    splits: pd.DataFrame,
    *,
    clients: Sequence[str],
    external: Sequence[str] = (),
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    method: str = "percentile",
) -> pd.DataFrame:
    """Performance on cohorts that the model never saw, beside that of models that did: a table :data:`TRANSFER`.

    predictions: for each cell (head, tuning, aggregation) and seed a table PREDICTIONS of the test scans. without: the same of the
    runs that left a cohort out, by that cohort, whose scans are all in them. splits: table SPLITS. clients: the cohorts in the
    order of the config. external: those of them that no cell was trained on. The other arguments as
    :func:`fedbrain.evaluation.performance.performance` takes them.

    p is DeLong's for an AUC, else the bootstrap's, of differences alone; p_holm is corrected over all differences of one metric in
    the table. Of a mean, p is that of Hartung and Knapp.
    Raises StudyError where an unseen model was tested on other test scans than the one that has seen the cohort, a run without
    a cohort has no cell to stand beside, or a cohort that is said to be external trains.
    """
    check_options(resamples, method, level)
    if wrong := sorted(set(external) - set(external_cohorts(splits))):
        raise StudyError(f"cohort {', '.join(wrong)}: said to be external, and in the split it trains; split again")
    options = {"resamples": resamples, "level": level, "seed": seed, "method": method}
    rows = []
    cells = dict.fromkeys([cell for of in without.values() for cell in of] + (list(predictions) if external else []))
    for cell in cells:
        named, over = dict(zip(("head", "tuning", "aggregation"), cell)), {}
        for cohort in clients:
            if cohort in without and cell in without[cohort]:
                found, estimates = _left_out(cell, cohort, predictions, without[cohort][cell], splits, clients, options)
                over[cohort] = estimates
                rows += [named | {"cohort": cohort, "kind": LEFT_OUT} | row for row in found]
            elif cohort in external and cell in predictions:
                scans, scores = _of_cohort(cell, predictions[cell], cohort, splits, clients)
                found = _values(cohort, scans, scores, options)
                rows += [
                    named | {"cohort": cohort, "kind": EXTERNAL, "tested": TEST, "model": UNSEEN} | row for row in found
                ]
        rows += [named | {"cohort": MEAN, "kind": LEFT_OUT, "metric": "auc"} | row for row in _means(over, level)]
    table = pd.DataFrame(rows, columns=list(TRANSFER)).astype(TRANSFER)
    pairs = table[(table["model"] == DIFFERENCE) & (table["cohort"] != MEAN)]
    for _, members in pairs.groupby("metric", sort=False):
        corrected = holm(members["p"].to_numpy(float, na_value=np.nan))
        table.loc[members.index, "p_holm"] = pd.array(corrected, dtype="Float64")
    return table


def _left_out(cell, cohort, predictions, unseen, splits, clients, options):
    """The rows of one cell and one cohort that was left out of it, and what enters the means over cohorts."""
    if cell not in predictions or any(number not in predictions[cell] for number in unseen):
        raise StudyError(
            f"{cell_name(cell)} without {cohort}: the cell itself has no predictions of its seeds; train it first"
        )
    own = splits[splits["cohort"] == cohort]
    tested = set(own.loc[own["split"] == "test", "subject"])
    seen = {number: predictions[cell][number] for number in unseen}
    held_out = {n: frame[(frame["cohort"] == cohort) & frame["subject"].isin(tested)] for n, frame in unseen.items()}
    parts = {
        (TEST, UNSEEN): _of_cohort(cell, held_out, cohort, splits, clients),
        (TEST, SEEN): _of_cohort(cell, seen, cohort, splits, clients),
        (ALL, UNSEEN): _of_cohort(cell, unseen, cohort, splits, clients),
    }
    if known := len(known_without(cohort, splits)):
        said = f"without {counted(known, 'subject')} whom another cohort has, too"
    rows, estimates = [], {}
    for (tested_on, model), (scans, scores) in parts.items():
        note = said if known and tested_on == ALL else ""
        rows += [
            {"tested": tested_on, "model": model} | row for row in _values(cohort, scans, scores, options, said=note)
        ]
        estimates[tested_on, model] = _auc_on_logit_scale(scans, scores)
    if len(parts[TEST, UNSEEN][0]) and len(parts[TEST, SEEN][0]):
        rows += _differences(cell, cohort, held_out, seen, splits, options)
        estimates[TEST, DIFFERENCE] = _auc_difference(parts[TEST, UNSEEN], parts[TEST, SEEN])
    return rows, estimates


def _of_cohort(cell, by_seed, cohort, splits, clients):
    """The scans of one cohort with their persons, and their scores (seeds, N)."""
    scans, scores = aligned(cell, by_seed, clients)
    chosen = of_client(scans, cohort)
    return with_persons(scans, splits)[chosen], scores[:, chosen]


def _values(cohort, scans, scores, options, *, said="") -> list[dict]:
    """Each metric with its interval."""
    labels, persons = scans["label"].to_numpy(int), scans["person"].to_numpy(str)
    people, positives = len(np.unique(persons)), len(np.unique(persons[labels == 1]))
    whole = {"seeds": len(scores), "subjects": people, "positives": positives, "negatives": people - positives}
    if not people:
        reason = "no predictions: each client has a model of its own here, and none was trained for this cohort"
        return [{"metric": name, "note": reason} | whole for name in ROWS]
    fewer = options | {"resamples": min(options["resamples"], CALIBRATION_RESAMPLES)}
    found = intervals(METRICS, labels, scores, persons, **options)
    found |= intervals(CALIBRATION_METRICS, labels, scores, persons, **fewer)
    _, low, high, remark = analytic_interval(labels, scores, persons, options["level"])
    found[ANALYTIC] = found["auc"]._replace(low=low, high=high)
    rows = []
    for name in ROWS:
        value = dict(zip(("value", "low", "high", "seed_sd"), found[name]))
        base = "auc" if name == ANALYTIC else name
        note = reason_undefined(base, int((labels == 1).sum()), int((labels == 0).sum()))
        if not note and np.isnan(found[name].value):
            reasons = [reason_uncalibrated(name, labels, of_seed) for of_seed in scores]
            note = next((reason for reason in reasons if reason), "a scan without a finite score: no value")
        elif not note and name == ANALYTIC:
            note = remark
        elif not note and found[name].low == found[name].high:
            note = "all resamples equal: the interval has no width and cannot show the uncertainty"
        rows.append({"metric": name, "note": "; ".join(filter(None, (said, note))) or None} | value | whole)
    return rows


def _differences(cell, cohort, unseen, seen, splits, options) -> list[dict]:
    """Unseen minus seen on the same scans."""
    a, b = (*cell[:2], f"{cell[2]} without {cohort}"), cell
    own = {a: unseen, b: {n: frame[frame["cohort"] == cohort] for n, frame in seen.items()}}
    rows = []
    for metric in COMPARED:
        table = compare_cells(own, clients=[cohort], pairs=[(a, b)], metric=metric, splits=splits, **options)
        row = table[table["client"] == cohort].iloc[0]
        p = row["p_bootstrap"] if pd.isna(row["p_delong"]) else row["p_delong"]
        kept = {name: row[name] for name in ("low", "high", "subjects", "positives", "negatives", "note")}
        kept |= {"value": row["difference"], "p": p, "seeds": row["seeds_a"], "seed_sd": np.nan}
        rows.append({"tested": TEST, "model": DIFFERENCE, "metric": metric} | kept)
    return rows


def _auc_on_logit_scale(scans, scores):
    """Logit of the mean AUC over seeds and its variance by DeLong, or why there is none."""
    if not len(scans):
        return None
    aucs, covariance = delong_covariance(scans["label"], scores, scans["person"])
    value, variance = aucs.mean(), covariance.mean()
    if not 0 < value < 1 or not variance > 0:
        return None
    return float(logit(value)), float(variance / (value * (1 - value)) ** 2)


def _auc_difference(unseen, seen):
    """Difference of the mean AUCs over seeds and its variance by DeLong; None without a variance."""
    (scans, first), (_, second) = unseen, seen
    aucs, covariance = delong_covariance(scans["label"], np.concatenate([first, second]), scans["person"])
    weights = np.r_[np.full(len(first), 1 / len(first)), np.full(len(second), -1 / len(second))]
    value, variance = float(weights @ aucs), float(weights @ covariance @ weights)
    return (value, variance) if np.isfinite(value) and variance > 1e-12 else None


def _means(over: Mapping[str, Mapping], level: float) -> list[dict]:
    """The mean over the cohorts that were left out, for each set of subjects and model."""
    rows = []
    for tested, model in ((TEST, UNSEEN), (TEST, SEEN), (ALL, UNSEEN), (TEST, DIFFERENCE)) if len(over) > 1 else ():
        found = {cohort: estimates.get((tested, model)) for cohort, estimates in over.items()}
        usable = {cohort: pair for cohort, pair in found.items() if pair}
        row = {"tested": tested, "model": model, "cohorts": len(usable)}
        absent = [cohort for cohort in found if cohort not in usable]
        if absent:
            # A mean over those that are left would be of other cohorts, and where an AUC is 1, of the worse ones.
            reason = "no AUC, or none with a variance (complete separation, one class, equal ranks)"
            rows.append(row | {"note": f"no mean; {', '.join(absent)}: {reason}"})
            continue
        effects = random_effects(*zip(*usable.values()), level=level)
        back = (
            (lambda x: min(1.0, max(-1.0, x))) if model == DIFFERENCE else expit
        )  # an AUC's difference is within -1 and 1
        names = ("value", "low", "high", "prediction_low", "prediction_high")
        row |= {name: float(back(getattr(effects, name))) for name in names}
        row |= {"tau": effects.tau, "p": effects.p if model == DIFFERENCE else np.nan}
        few = (
            f"{counted(len(usable), 'cohort')} only: the interval is wide, and tau a guess" if len(usable) < 5 else None
        )
        rows.append(row | {"note": few})
    return rows
