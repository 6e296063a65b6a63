"""The performance table: every cell's metrics with intervals, for each client and pooled over all."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fedbrain.errors import StudyError
from fedbrain.evaluation.baseline import CELL, site_only
from fedbrain.evaluation.bootstrap import intervals
from fedbrain.evaluation.metrics import METRICS, counted, reason_undefined
from fedbrain.tables import PERFORMANCE

POOLED = "pooled"
Cell = tuple[str, str, str]  # head, tuning, aggregation

_KEYS = ["cohort", "subject", "session"]


def performance(
    predictions: Mapping[Cell, Mapping[int, pd.DataFrame]],
    *,
    clients: Sequence[str],
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    method: str = "percentile",
    splits: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Metrics on the test scans of each client and of all of them ("pooled"), with intervals over subjects.

    predictions: for each cell (head, tuning, aggregation) and training seed a table PREDICTIONS of the test scans.
    clients: the cohorts in the order of the config; each gets its rows, also where there is nothing to compute.
    splits: table SPLITS; where given, subjects that are one person (one id or one image in two cohorts) are one unit of
    the bootstrap, and the site-only baseline (:mod:`fedbrain.evaluation.baseline`) is added as a cell, scored on the test
    scans of the first cell. Without it every subject of every cohort is a unit of its own.

    Returns a table PERFORMANCE with the metrics of :data:`fedbrain.evaluation.metrics.METRICS`: value is the mean over
    seeds, low and high its interval over subjects, seed_sd the standard deviation over seeds; subjects, positives and
    negatives count the units that are drawn: test subjects, a person once (positive: any positive scan). A missing value has a note that says why; a value that
    is easily misread has one, too.
    Raises StudyError where the seeds of a cell were not tested on the same scans, a scan stands twice in a table, or a
    cohort is not among the clients.
    """
    if POOLED in clients:
        raise StudyError(
            f"a cohort is named {POOLED!r}, which stands for all cohorts together: rename it in the config"
        )
    cells = dict(predictions)
    if splits is not None and cells:
        first = next(iter(next(iter(cells.values())).values()))
        cells[CELL] = {0: site_only(splits, first)}
    persons = {} if splits is None else _persons(splits)
    rows = []
    for cell, by_seed in cells.items():
        scans, scores = _aligned(cell, by_seed, clients)  # scores (seeds, N)
        subjects = scans["cohort"] + "/" + scans["subject"]  # the same id in two cohorts is two subjects
        scans = scans.assign(person=[persons.get(subject, subject) for subject in subjects])
        for client in (*clients, POOLED):
            chosen = np.ones(len(scans), bool) if client == POOLED else (scans["cohort"] == client).to_numpy(bool)
            rows += _client_rows(
                cell,
                client,
                scans[chosen],
                scores[:, chosen],
                resamples=resamples,
                level=level,
                seed=seed,
                method=method,
            )
    return pd.DataFrame(rows, columns=list(PERFORMANCE)).astype(PERFORMANCE)


def _persons(splits: pd.DataFrame) -> dict[str, str]:
    """The person of each ``cohort/subject``; a row without one stands for its own subject, as in the split's check."""
    subjects = splits["cohort"].astype("string") + "/" + splits["subject"].astype("string")
    return dict(zip(subjects, splits["person"].astype("string").fillna(subjects)))


def _client_rows(cell: Cell, client: str, scans: pd.DataFrame, scores: np.ndarray, **options) -> list[dict]:
    labels = scans["label"].to_numpy(int)
    persons = scans["person"].to_numpy(str)
    people, positives = len(np.unique(persons)), len(np.unique(persons[labels == 1]))
    results = intervals(METRICS, labels, scores, persons, **options) if people else {}
    rows = []
    for metric in METRICS:
        value, low, high, seed_sd = results.get(metric, (np.nan,) * 4)
        rows.append(
            dict(zip(("head", "tuning", "aggregation"), cell))
            | {
                "client": client,
                "metric": metric,
                "value": value,
                "low": low,
                "high": high,
                "seed_sd": seed_sd,
                "seeds": len(scores),
                "subjects": people,
                "positives": positives,
                "negatives": people - positives,
                "note": _note(cell, client, metric, labels, scores, positives, people - positives, low, high),
            }
        )
    return rows


def _note(cell, client, metric, labels, scores, positives, negatives, low, high) -> str | None:
    """Why a value is missing, or what its reader must know; None where there is nothing to say."""
    # A class is there if a scan of it is there: a subject that converts supplies both.
    missing = reason_undefined(metric, max(positives, int(1 in labels)), max(negatives, int(0 in labels)))
    if missing:
        return missing
    broken = int((~np.isfinite(scores)).any(axis=0).sum())
    if broken:
        return f"{counted(broken, 'scan')} without a finite score: no value; look at the training's losses"
    if cell == CELL and client != POOLED:
        return "one score for the whole cohort: knows the site only, says nothing about a subject"
    remarks = []
    if cell[2] == "local" and client == POOLED:
        remarks.append("mixes scores of different models, one per client, whose scales may differ")
    few = [counted(n, noun) for n, noun in ((positives, "case"), (negatives, "control")) if n == 1]
    if few:
        remarks.append(f"{' and '.join(few)} only: the interval leaves out the uncertainty of that class")
    elif low == high:
        remarks.append("all resamples equal: the interval has no width and cannot show the uncertainty")
    return "; ".join(remarks) or None


def _aligned(cell: Cell, by_seed: Mapping[int, pd.DataFrame], clients) -> tuple[pd.DataFrame, np.ndarray]:
    """One row per test scan, in one order for all cells, and (seeds, N) scores."""
    name = "/".join(cell)
    if not by_seed:
        raise StudyError(f"{name}: no predictions; train the cell first")
    frames = []
    for seed, frame in by_seed.items():
        frame = frame.assign(session=frame["session"].astype("string").fillna("")).sort_values(_KEYS)
        if frame.duplicated(_KEYS).any():
            raise StudyError(f"{name}, seed {seed}: a scan has two predictions; delete predictions.tsv and run again")
        unknown = sorted(set(frame["cohort"]) - set(clients))
        if unknown:
            raise StudyError(
                f"{name}, seed {seed}: predictions of cohort {', '.join(unknown)}, which is not among the clients "
                f"({', '.join(clients)}); delete predictions.tsv and run again"
            )
        frames.append(frame.reset_index(drop=True))
    scans = frames[0][[*_KEYS, "label"]]
    for seed, frame in zip(by_seed, frames):
        if not frame[[*_KEYS, "label"]].astype(str).equals(scans.astype(str)):
            raise StudyError(
                f"{name}: seed {seed} was tested on other scans than seed {next(iter(by_seed))}; "
                "train both on the same splits"
            )
    return scans, np.stack([frame["score"].astype("Float64").to_numpy(float, na_value=np.nan) for frame in frames])
