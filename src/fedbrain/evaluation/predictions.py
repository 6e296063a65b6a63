"""Predictions of the cells, brought onto one order of scans, and the persons that are the units of the bootstrap."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fedbrain.cohorts.splits import external_cohorts
from fedbrain.errors import StudyError
from fedbrain.evaluation.metrics import counted
from fedbrain.tables import PREDICTIONS, read_table

POOLED = "pooled"
Cell = tuple[str, str, str]  # head, tuning, aggregation
OWN_MODELS = ("local",)  # aggregations that give each client a model of its own, where nothing else is said
MIXED = "mixes scores of different models, one per client, whose scales may differ"

_KEYS = ["cohort", "subject", "session"]


def cell_name(cell: Cell) -> str:
    """``head/tuning/aggregation``."""
    return "/".join(cell)


def read_runs(runs: Sequence[Sequence], paths: Sequence) -> dict[Cell, dict[int, pd.DataFrame]]:
    """Tables PREDICTIONS by cell and seed. runs: head, tuning, aggregation and seed of each path."""
    result: dict[Cell, dict[int, pd.DataFrame]] = {}
    for (head, tuning, aggregation, seed), path in zip(runs, paths):
        result.setdefault((head, tuning, aggregation), {})[seed] = read_table(path, PREDICTIONS)
    return result


def aligned(cell: Cell, by_seed: Mapping[int, pd.DataFrame], clients: Sequence[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """One row per scan (cohort, subject, session, label), in one order for all cells, and scores (seeds, N).

    by_seed: a table PREDICTIONS for each training seed. A missing score is NaN, a missing session the empty string. A client that
    some seed has no model for (it was not drawn in time) is left out of all seeds, so that their mean is of the same scans.
    Raises StudyError where there is no seed, the seeds were tested on different scans, a scan stands twice in a table,
    or a cohort is not among the clients.
    """
    name = cell_name(cell)
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
        frames.append(frame)
    everywhere = set.intersection(*(set(frame["cohort"]) for frame in frames))
    frames = [frame[frame["cohort"].isin(everywhere)].reset_index(drop=True) for frame in frames]
    scans = frames[0][[*_KEYS, "label"]]
    for seed, frame in zip(by_seed, frames):
        if not frame[[*_KEYS, "label"]].astype(str).equals(scans.astype(str)):
            raise StudyError(
                f"{name}: seed {seed} was tested on other scans than seed {next(iter(by_seed))}; "
                "train both on the same splits"
            )
    return scans, np.stack([frame["score"].astype("Float64").to_numpy(float, na_value=np.nan) for frame in frames])


def without_model(
    predictions: Mapping[Cell, Mapping[int, pd.DataFrame]], splits: pd.DataFrame | None = None
) -> dict[tuple[Cell, str], str]:
    """By cell and client, and for "pooled", what to say where a cell has no predictions of test scans that others predict.

    So it is where each client has a model of its own, and one has trained none in every seed. External cohorts are no part of
    "pooled" (splits: table SPLITS, which knows them).
    """
    subjects: dict[str, set] = {}
    for by_seed in predictions.values():
        for frame in by_seed.values():
            for client, part in frame.groupby("cohort"):
                subjects.setdefault(client, set()).update(part["subject"])
    external = [] if splits is None else external_cohorts(splits)
    notes = {}
    for cell, by_seed in predictions.items():
        lacking = {c for frame in by_seed.values() for c in subjects if c not in set(frame["cohort"])}
        for client in lacking:
            notes[cell, client] = (
                f"{counted(len(subjects[client]), 'test subject')}, but no model for them: each client has its own here, and "
                "this one has trained none"
            )
        if inside := sorted(lacking - set(external)):
            notes[cell, POOLED] = f"without {', '.join(inside)}, which has no model of its own"
    return notes


def with_persons(scans: pd.DataFrame, splits: pd.DataFrame | None) -> pd.DataFrame:
    """The scans with a column ``person``, the unit that a bootstrap draws, and one that says whether their cohort is ``external``.

    splits: table SPLITS, whose column person ties subjects together (one image under two ids); a row without one stands
    for its own subject. Without splits every subject of every cohort is a person: the same id in two cohorts is two.
    """
    persons, external = ({}, []) if splits is None else (_persons_of(splits), external_cohorts(splits))
    subjects = scans["cohort"] + "/" + scans["subject"]
    return scans.assign(
        person=[persons.get(subject, subject) for subject in subjects], external=scans["cohort"].isin(external)
    )


def of_client(scans: pd.DataFrame, client: str) -> np.ndarray:
    """Which scans are a client's, (N,) of bool; for "pooled" all of them but those of external cohorts.

    What is pooled is the performance on the cohorts that the model was trained for; a cohort that it has never seen answers
    another question, and with all its subjects in the test would outweigh them.
    """
    if client != POOLED:
        return (scans["cohort"] == client).to_numpy(bool)
    return ~scans["external"].to_numpy(bool) if "external" in scans else np.ones(len(scans), bool)


def refuse_pooled_cohort(clients: Sequence[str]) -> None:
    """Raises StudyError where a cohort has the name that stands for all cohorts together."""
    if POOLED in clients:
        raise StudyError(
            f"a cohort is named {POOLED!r}, which stands for all cohorts together: rename it in the config"
        )


def _persons_of(splits: pd.DataFrame) -> dict[str, str]:
    subjects = splits["cohort"].astype("string") + "/" + splits["subject"].astype("string")
    return dict(zip(subjects, splits["person"].astype("string").fillna(subjects)))
