"""Training, validation and test subjects: by person, stratified by label within cohort, seeded, stable.

A person is all subjects that share an id (if the config says that ids link cohorts) or an image: two files with the
same voxels are the same head, under whatever id and however they are packed. All scans of a person stay on one side.
Who is one person is found before scans are dropped, and with those that failed: a scan that is not used says no less
about whose head it is.

The order in which persons are dealt out is a hash of seed and person, so that a new subject moves at most the subjects
at the borders, and not everybody.
"""

import hashlib
from collections.abc import Collection, Mapping
from os import PathLike

import pandas as pd

from fedbrain.errors import StudyError
from fedbrain.provenance import digest
from fedbrain.tables import DROPPED, DUPLICATES, SPLITS

SIDES = ("train", "validation", "test")
KNOWN = "a person that another cohort has, too: no part in an external test"


def split_subjects(
    scans: Mapping[str, pd.DataFrame],
    volumes: Mapping[str, pd.DataFrame],
    *,
    validation: float,
    test: float,
    link_ids: bool,
    seed: int,
    dropped: Mapping[str, Collection[str]] | None = None,
    external: Collection[str] = (),
) -> pd.DataFrame:
    """Deals the subjects of all cohorts out to the three sides.

    Args:
        scans: per cohort, the scans that take part (tables.SCANS).
        volumes: per cohort, what became of each scan (tables.VOLUMES); a subject without a usable scan is not dealt out.
        validation, test: fractions of each stratum (label within cohort), rounded by largest remainder; a stratum of
            three or more persons has at least one on each side whose fraction is not zero.
        link_ids: whether one subject id in two cohorts is one person.
        seed: of the order in which persons are dealt out.
        dropped: per cohort, scans that take no part because of their quality.
        external: the cohorts that are tested on and never trained on. Their subjects that are persons of another cohort have
            no row (see :func:`known_elsewhere`); the other cohorts are dealt out as if these were not there.

    Returns tables.SPLITS, one row per cohort and subject; a subject is a case if any of its scans is.
    Raises StudyError where dropping takes all cases, controls or training subjects from a cohort, and where no subject of an
    external cohort is left.
    """
    usable = _usable(scans, volumes, link_ids, external)
    members = _without(usable, dropped or {})
    strangers = ~_is_known_elsewhere(members, external)
    members = members[strangers].reset_index(drop=True)
    subjects = (
        members.groupby(["cohort", "subject"], sort=False)
        .agg(person=("person", "first"), label=("label", "max"))
        .reset_index()
    )
    order = {cohort: number for number, cohort in enumerate(scans)}
    strata: dict[tuple, list[str]] = {}
    for person, rows in subjects.groupby("person", sort=True):
        if rows["cohort"].isin(external).all():
            continue
        home = min(rows["cohort"], key=order.__getitem__)
        label = int(rows.loc[rows["cohort"] == home, "label"].max())
        strata.setdefault((order[home], label), []).append(person)
    side = {}
    for key in sorted(strata):
        persons = sorted(strata[key], key=lambda person: hashlib.sha256(f"{seed}/{person}".encode()).digest())
        for person, name in zip(persons, _deal(len(persons), validation, test)):
            side[person] = name
    subjects["split"] = subjects["person"].map(side).where(~subjects["cohort"].isin(external), "test")
    for cohort in external:
        if cohort not in set(subjects["cohort"]):
            raise StudyError(
                f"cohort {cohort}: it is external, and no subject is left to test on: all its scans failed, were dropped, or are of "
                "persons that other cohorts have, too; see results/cohorts/duplicates.tsv, or take the cohort out"
            )
    for cohort, scans_left_out in (dropped or {}).items():
        if scans_left_out and cohort not in external:
            _assert_enough_left(cohort, usable[usable["cohort"] == cohort], subjects[subjects["cohort"] == cohort])
    return subjects[list(SPLITS)]


def known_elsewhere(
    scans: Mapping[str, pd.DataFrame],
    volumes: Mapping[str, pd.DataFrame],
    *,
    link_ids: bool,
    external: Collection[str],
    dropped: Mapping[str, Collection[str]] | None = None,
) -> pd.DataFrame:
    """The sound scans of external cohorts whose person a cohort that trains has, too: they take no part (tables.DROPPED)."""
    members = _without(_usable(scans, volumes, link_ids, external), dropped or {})
    rows = members.loc[_is_known_elsewhere(members, external), ["cohort", "scan"]]
    return rows.assign(reason=KNOWN)[list(DROPPED)].astype(DROPPED).reset_index(drop=True)


def external_cohorts(splits: pd.DataFrame) -> list[str]:
    """The cohorts of a table SPLITS that neither train nor choose anything: all their subjects are test subjects.

    None, where that is so of all cohorts: a table of test subjects alone does not say who trained.
    """
    alone = splits["split"].eq("test").groupby(splits["cohort"].astype(str), sort=False).all()
    return [] if alone.all() else list(alone.index[alone])


def known_without(cohort: str, splits: pd.DataFrame) -> set[str]:
    """The subjects of a cohort that a model trained without it may know all the same: persons who train or validate in another.

    splits: a table SPLITS.
    """
    mine, held_out = splits["cohort"] == cohort, splits["split"] == "test"
    elsewhere = set(splits.loc[~mine & ~held_out, "person"].dropna())
    return set(splits.loc[mine & splits["person"].isin(elsewhere), "subject"])


def digest_of_dropped(dropped: pd.DataFrame) -> str:
    """What tells one set of dropped scans (DROPPED) from another, whatever they are dropped for."""
    return digest(sorted(zip(dropped["cohort"], dropped["scan"])))


def find_duplicates(scans: Mapping[str, pd.DataFrame], volumes: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The scans whose image occurs more than once, within a cohort or across cohorts (tables.DUPLICATES)."""
    members = _members(scans, volumes)
    members = members[members["status"] == "ok"]
    twice = members[members["voxels_sha256"].duplicated(keep=False)].copy()
    images = twice.groupby("voxels_sha256", sort=False)
    twice["image"] = images.ngroup() + 1
    twice["same"] = (images["sha256"].transform("nunique") == 1).map({True: "file", False: "voxels"})
    return twice.sort_values("image", kind="stable")[list(DUPLICATES)].astype(DUPLICATES).reset_index(drop=True)


def assert_no_leakage(splits: pd.DataFrame, place: str | PathLike = "splits") -> None:
    """Raises StudyError if a person is on two sides of the split, within a cohort or across cohorts.

    Without a ``person`` a row stands for its own subject of its own cohort. The message gives line numbers, not ids.
    """
    unknown = ~splits["split"].isin(SIDES)
    if unknown.any():
        lines = ", ".join(str(row + 2) for row in splits.index[unknown][:5])
        raise StudyError(f"{place}, line {lines}: split must be one of {', '.join(SIDES)}")
    subject = splits["cohort"].astype("string") + "/" + splits["subject"].astype("string")
    for what, identity in (("person", splits["person"].astype("string").fillna(subject)), ("subject", subject)):
        sides = splits.groupby(identity)["split"].transform("nunique")
        leaking = splits[sides > 1]
        if len(leaking):
            lines = ", ".join(str(row + 2) for row in leaking.index[:6])
            cohorts = ", ".join(sorted(leaking["cohort"].unique()))
            count = identity[leaking.index].nunique()
            raise StudyError(
                f"{place}: {count} {what}(s) on two sides of the split (cohorts {cohorts}; lines {lines}): test results "
                "would be too good. Delete the file and run again, or mend the column person"
            )


def _usable(scans, volumes, link_ids, external) -> pd.DataFrame:
    """All sound scans with their persons."""
    # External ones last, so that a person's name, and with it its place in the order, is what it would be without them.
    ordered = sorted(scans, key=lambda cohort: cohort in external)
    everyone = _members({cohort: scans[cohort] for cohort in ordered}, volumes)
    everyone["person"] = _persons(everyone, link_ids)
    return everyone[everyone["status"] == "ok"]


def _is_known_elsewhere(members: pd.DataFrame, external: Collection[str]) -> pd.Series:
    outside = members["cohort"].isin(external)
    return outside & members["person"].isin(members.loc[~outside, "person"])


def _members(scans: Mapping[str, pd.DataFrame], volumes: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All scans with what is known of their content, failed ones too."""
    frames = []
    for cohort, table in scans.items():
        known = volumes[cohort][["scan", "status", "sha256", "voxels_sha256"]]
        frames.append(table[["scan", "subject", "label"]].merge(known, on="scan").assign(cohort=cohort))
    return pd.concat(frames, ignore_index=True)


def _without(members: pd.DataFrame, dropped: Mapping[str, Collection[str]]) -> pd.DataFrame:
    out = [scan in dropped.get(cohort, ()) for cohort, scan in zip(members["cohort"], members["scan"])]
    return members[~pd.Series(out, index=members.index, dtype=bool)].reset_index(drop=True)


def _assert_enough_left(cohort: str, before: pd.DataFrame, subjects: pd.DataFrame) -> None:
    lost = [name for label, name in ((1, "case"), (0, "control")) if (before["label"] == label).any()]
    lost = [name for name in lost if not (subjects["label"] == int(name == "case")).any()]
    lost += [] if (subjects["split"] == "train").any() else ["training subject"]
    if lost:
        raise StudyError(
            f"cohort {cohort}: quality.drop leaves it without a {' and without a '.join(lost)}; look at "
            f"results/quality/{cohort}.tsv, then loosen quality.limits or quality.outlier_z, or set quality.drop: none"
        )


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
    # A failed scan has no voxels; its file tells whose it is where the same file is a scan elsewhere. Files that all failed
    # may be one page of a download that went wrong, under the names of many, who must not become one person.
    usable = members["status"] == "ok"
    images = members[usable].drop_duplicates("sha256").set_index("sha256")["voxels_sha256"]
    ties = [members["voxels_sha256"].where(usable, members["sha256"].map(images))]
    ties += [members["subject"]] if link_ids else []
    for tie in ties:
        first: dict[str, str] = {}
        for name, value in zip(subjects, tie):
            if pd.isna(value):
                continue
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
