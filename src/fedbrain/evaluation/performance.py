"""The performance table: every cell's metrics with intervals, for each client and pooled over all."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from fedbrain.evaluation.baseline import CELL, with_baseline
from fedbrain.evaluation.bootstrap import Interval, intervals
from fedbrain.evaluation.calibration import CALIBRATION_METRICS, reason_uncalibrated
from fedbrain.evaluation.comparison import analytic_interval
from fedbrain.evaluation.metrics import METRICS, counted, reason_undefined
from fedbrain.evaluation.predictions import (
    MIXED,
    OWN_MODELS,
    POOLED,
    Cell,
    aligned,
    of_client,
    refuse_pooled_cohort,
    with_persons,
    without_model,
)
from fedbrain.tables import PERFORMANCE

ANALYTIC = "auc_delong"  # the AUC again, with an interval that needs no resampling and holds on few subjects
CALIBRATION_RESAMPLES = 2000  # at most: a fit in each resample takes ten times as long as an AUC (ours)
ROWS = (
    "auc",
    ANALYTIC,
    *(metric for metric in METRICS | CALIBRATION_METRICS if metric != "auc"),
)  # metrics, in the table's order


def performance(
    predictions: Mapping[Cell, Mapping[int, pd.DataFrame]],
    *,
    clients: Sequence[str],
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    method: str = "percentile",
    splits: pd.DataFrame | None = None,
    own_models: Collection[str] = OWN_MODELS,
) -> pd.DataFrame:
    """Metrics on the test scans of each client and of all that train ("pooled"), with intervals over subjects.

    predictions: for each cell (head, tuning, aggregation) and training seed a table PREDICTIONS of the test scans.
    clients: the cohorts in the order of the config; each gets its rows, also where there is nothing to compute.
    splits: table SPLITS; where given, subjects that are one person (one id or one image in two cohorts) are one unit of
    the bootstrap, external cohorts (of test subjects alone) have their rows and no part in "pooled", and the site-only
    baseline (:mod:`fedbrain.evaluation.baseline`) is added as a cell. Without it every subject of every cohort is a unit of its own.
    own_models: the aggregations that give each client a model of its own, whose scores are mixed in "pooled".

    Returns a table PERFORMANCE with the metrics of :data:`ROWS`: those of :mod:`fedbrain.evaluation.metrics` and
    :mod:`fedbrain.evaluation.calibration`, and the AUC once more with the interval of
    :func:`fedbrain.evaluation.comparison.analytic_interval` ("auc_delong"). value is the mean over
    seeds, low and high its interval over subjects, seed_sd the standard deviation over seeds; metrics of
    calibration take the first 2,000 of the resamples; subjects, positives and
    negatives count the units that are drawn: test subjects, a person once (positive: any positive scan). A missing value has a note that says why; a value that
    is easily misread has one, too.
    Raises StudyError where the seeds of a cell were not tested on the same scans, a scan stands twice in a table, or a
    cohort is not among the clients.
    """
    refuse_pooled_cohort(clients)
    cells = dict(predictions) if splits is None else with_baseline(predictions, splits)
    absent, rows = without_model(predictions, splits), []
    for cell, by_seed in cells.items():
        scans, scores = aligned(cell, by_seed, clients)  # scores (seeds, N)
        scans = with_persons(scans, splits)
        for client in (*clients, POOLED):
            chosen = of_client(scans, client)
            rows += _client_rows(
                cell,
                client,
                scans[chosen],
                scores[:, chosen],
                absent=absent.get((cell, client), ""),
                mixed=cell[2] in own_models and client == POOLED,
                resamples=resamples,
                level=level,
                seed=seed,
                method=method,
            )
    return pd.DataFrame(rows, columns=list(PERFORMANCE)).astype(PERFORMANCE)


def _client_rows(
    cell: Cell, client: str, scans: pd.DataFrame, scores: np.ndarray, *, absent: str, mixed: bool, **options
) -> list[dict]:
    labels = scans["label"].to_numpy(int)
    persons = scans["person"].to_numpy(str)
    people, positives = len(np.unique(persons)), len(np.unique(persons[labels == 1]))
    said = [absent] * bool(absent) + [MIXED] * mixed
    results, remarks = {}, {}
    if people:
        fewer = options | {"resamples": min(options["resamples"], CALIBRATION_RESAMPLES)}
        results |= intervals(METRICS, labels, scores, persons, **options)
        results |= intervals(CALIBRATION_METRICS, labels, scores, persons, **fewer)
        _, low, high, remark = analytic_interval(labels, scores, persons, options["level"])
        results[ANALYTIC] = results["auc"]._replace(low=low, high=high)
        remarks[ANALYTIC] = remark
    rows = []
    for metric in ROWS:
        found = results.get(metric, Interval(*(np.nan,) * 4))
        rows.append(
            dict(zip(("head", "tuning", "aggregation"), cell))
            | {
                "client": client,
                "metric": metric,
                "value": found.value,
                "low": found.low,
                "high": found.high,
                "seed_sd": found.seed_sd,
                "seeds": len(scores),
                "subjects": people,
                "positives": positives,
                "negatives": people - positives,
                "note": absent
                if absent and not people
                else _note(
                    *(cell, client, metric, labels, scores, positives, people - positives, found),
                    *(remarks.get(metric, ""), said),
                ),
            }
        )
    return rows


def _note(cell, client, metric, labels, scores, positives, negatives, found: Interval, remark: str, said) -> str | None:
    """Why a value is missing, or what its reader must know; None where there is nothing to say."""
    # A class is there if a scan of it is there: a subject that converts supplies both.
    base = "auc" if metric == ANALYTIC else metric
    missing = reason_undefined(base, max(positives, int(1 in labels)), max(negatives, int(0 in labels)))
    if missing:
        return missing
    broken = int((~np.isfinite(scores)).any(axis=0).sum())
    if broken:
        return f"{counted(broken, 'scan')} without a finite score: no value; look at the training's losses"
    if cell == CELL and client != POOLED:
        return "one score for the whole cohort: knows the site only, says nothing about a subject"
    if np.isnan(found.value):
        reasons = [reason_uncalibrated(metric, labels, of_seed) for of_seed in scores]
        return next((reason for reason in reasons if reason), "no value: a score is outside 0 to 1")
    remarks = list(said)
    if metric == ANALYTIC:
        return "; ".join([*remarks, *([remark] if remark else [])]) or None
    few = [counted(n, noun) for n, noun in ((positives, "case"), (negatives, "control")) if n == 1]
    if few:
        remarks.append(f"{' and '.join(few)} only: the interval leaves out the uncertainty of that class")
    elif np.isnan(found.low) or np.isnan(found.high):
        remarks.append("the score separates the classes in so many resamples that a limit is not finite")
    elif found.low == found.high:
        remarks.append("all resamples equal: the interval has no width and cannot show the uncertainty")
    if found.undefined:
        remarks.append(f"no value in {found.undefined:.1%} of the resamples, which are left out")
    return "; ".join(remarks) or None
