"""Training, validation and test subjects: by person, stratified by label within cohort, seeded, stable.

A person is all subjects that share an id (if the config says that ids link cohorts) or an image: two files with the
same content are the same head, under whatever id. All scans of a person stay on one side.

The order in which persons are dealt out is a hash of seed and person, so that a new subject moves at most the subjects
at the borders, and not everybody.
"""

import hashlib
from collections.abc import Mapping

import pandas as pd

from fedbrain.errors import StudyError
from fedbrain.tables import SPLITS

SPLIT_NAMES = ("train", "validation", "test")


def split_subjects(
    scans: Mapping[str, pd.DataFrame],
    volumes: Mapping[str, pd.DataFrame],
    *,
    validation: float,
    test: float,
    link_ids: bool,
    seed: int,
) -> pd.DataFrame:
    """Deals the subjects of all cohorts out to the three sides.

    Args:
        scans: per cohort, the scans that take part (tables.SCANS).
        volumes: per cohort, what became of each scan (tables.VOLUMES); a subject without a usable scan is not dealt out.
        validation, test: fractions of each stratum (label within cohort), rounded by largest remainder; a stratum of
            three or more persons has at least one on each side whose fraction is not zero.
        link_ids: whether one subject id in two cohorts is one person.
        seed: of the order in which persons are dealt out.

    Returns tables.SPLITS, one row per cohort and subject; a subject is a case if any of its scans is.
    """
    members = _members(scans, volumes)
    members["person"] = _persons(members, link_ids)
    subjects = (
        members.groupby(["cohort", "subject"], sort=False)
        .agg(person=("person", "first"), label=("label", "max"))
        .reset_index()
    )
    order = {cohort: number for number, cohort in enumerate(scans)}
    strata: dict[tuple, list[str]] = {}
    for person, rows in subjects.groupby("person", sort=True):
        home = min(rows["cohort"], key=order.__getitem__)
        label = int(rows.loc[rows["cohort"] == home, "label"].max())
        strata.setdefault((order[home], label), []).append(person)
    side = {}
    for key in sorted(strata):
        persons = sorted(strata[key], key=lambda person: hashlib.sha256(f"{seed}/{person}".encode()).digest())
        for person, name in zip(persons, _deal(len(persons), validation, test)):
            side[person] = name
    subjects["split"] = subjects["person"].map(side)
    return subjects[list(SPLITS)]


def assert_no_leakage(splits: pd.DataFrame) -> None:
    """Raises StudyError if a person stands on two sides, a subject occurs twice, or a side has an unknown name."""
    sides = splits.groupby("person")["split"].nunique()
    torn = int((sides > 1).sum())
    if torn:
        raise StudyError(f"splits: {torn} persons stand on two sides; delete results/cohorts/splits.tsv and run again")
    if splits.duplicated(["cohort", "subject"]).any():
        raise StudyError("splits: a subject occurs twice; delete results/cohorts/splits.tsv and run again")
    unknown = sorted(set(splits["split"]) - set(SPLIT_NAMES))
    if unknown:
        raise StudyError(f"splits: unknown side {', '.join(unknown)}; known: {', '.join(SPLIT_NAMES)}")


def _members(scans: Mapping[str, pd.DataFrame], volumes: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    frames = []
    for cohort, table in scans.items():
        usable = volumes[cohort].loc[volumes[cohort]["status"] == "ok", ["scan", "sha256"]]
        frames.append(table[["scan", "subject", "label"]].merge(usable, on="scan").assign(cohort=cohort))
    return pd.concat(frames, ignore_index=True)


def _persons(members: pd.DataFrame, link_ids: bool) -> list[str]:
    """The name of each row's person: the first cohort/subject of its group, in order of appearance."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    subjects = [f"{cohort}/{subject}" for cohort, subject in zip(members["cohort"], members["subject"])]
    rank = {name: position for position, name in reversed(list(enumerate(subjects)))}
    parent.update((name, name) for name in subjects)
    ties = [members["sha256"]] + ([members["subject"]] if link_ids else [])
    for tie in ties:
        first: dict[str, str] = {}
        for name, value in zip(subjects, tie):
            a, b = root(first.setdefault(value, name)), root(name)
            if a != b:
                parent[max(a, b, key=rank.__getitem__)] = min(a, b, key=rank.__getitem__)
    return [root(name) for name in subjects]


def _deal(count: int, validation: float, test: float) -> list[str]:
    shares = {"test": test, "validation": validation, "train": 1 - validation - test}
    exact = {name: share * count for name, share in shares.items()}
    dealt = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: dealt[name] - exact[name])[: count - sum(dealt.values())]:
        dealt[name] += 1
    if count >= sum(share > 0 for share in shares.values()):
        for name, share in shares.items():
            if share > 0 and not dealt[name]:
                dealt[max(dealt, key=dealt.__getitem__)] -= 1
                dealt[name] += 1
    return [name for name in shares for _ in range(dealt[name])]
