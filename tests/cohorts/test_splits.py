"""Subjects, not scans, are dealt out; by label within cohort; a person stays on one side, across cohorts too."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbrain.cohorts.splits import split_subjects


def cohort(cases, controls, prefix="p", visits=1, failed=(), sha=None):
    rows, volumes = [], []
    for number in range(cases + controls):
        for visit in range(visits):
            scan = f"sub-{prefix}{number}_ses-{visit}"
            rows.append({"scan": scan, "subject": f"{prefix}{number}", "label": int(number < cases)})
            content = (sha or {}).get(number, f"{prefix}{number}-{visit}")
            volumes.append({"scan": scan, "status": "failed" if number in failed else "ok", "sha256": content})
    return pd.DataFrame(rows), pd.DataFrame(volumes)


def split(cohorts, validation=0.2, test=0.3, link_ids=True, seed=0):
    scans = {name: pair[0] for name, pair in cohorts.items()}
    volumes = {name: pair[1] for name, pair in cohorts.items()}
    return split_subjects(scans, volumes, validation=validation, test=test, link_ids=link_ids, seed=seed)


def test_fractions_hold_within_each_label_of_each_cohort():
    table = split({"a": cohort(20, 30, "a"), "b": cohort(10, 10, "b")})
    counts = table.groupby(["cohort", "label", "split"]).size().to_dict()
    assert counts[("a", 1, "test")] == 6
    assert counts[("a", 0, "test")] == 9
    assert counts[("a", 1, "validation")] == 4
    assert counts[("b", 1, "train")] == 5


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 12),
    st.integers(3, 12),
    st.integers(1, 3),
    st.floats(0, 0.4),
    st.floats(0.05, 0.5),
    st.integers(0, 9),
)
def test_every_subject_once_and_every_side_filled(cases, controls, visits, validation, test, seed):
    table = split({"a": cohort(cases, controls, "a", visits)}, validation=validation, test=test, seed=seed)
    assert sorted(table["subject"]) == sorted(f"a{n}" for n in range(cases + controls))
    wanted = {"train", "test"} | ({"validation"} if validation > 0 else set())
    for label, count in ((1, cases), (0, controls)):
        if count >= 3:
            assert set(table.loc[table["label"] == label, "split"]) == wanted


def test_the_seed_decides_and_a_new_subject_moves_few():
    big = {"a": cohort(0, 100, "a")}
    first, again, other = split(big), split(big), split(big, seed=1)
    assert first.equals(again)
    assert not first["split"].equals(other["split"])
    grown = split({"a": cohort(0, 101, "a")})
    both = first.merge(grown, on="subject")
    assert (both["split_x"] != both["split_y"]).sum() <= 2


def test_one_image_under_two_ids_is_one_person_on_one_side():
    for seed in range(10):
        table = split({"a": cohort(6, 6, "a"), "b": cohort(6, 6, "b", sha={3: "a2-0"})}, seed=seed)
        pair = table[((table["cohort"] == "a") & (table["subject"] == "a2")) | (table["subject"] == "b3")]
        assert pair["person"].nunique() == 1
        assert pair["split"].nunique() == 1


def test_ids_link_cohorts_only_if_the_config_says_so():
    cohorts = {"a": cohort(6, 6), "b": cohort(6, 6, sha={number: f"b-{number}" for number in range(12)})}
    linked = split(cohorts)
    assert (linked.groupby("subject")["split"].nunique() == 1).all()
    assert linked["person"].nunique() == 12
    assert split(cohorts, link_ids=False)["person"].nunique() == 24


def test_chains_of_links_make_one_person():
    a = cohort(2, 4, "a", sha={0: "same"})
    b = cohort(2, 4, "b", sha={0: "same"})
    c = cohort(2, 4, "c", sha={0: "same"})
    table = split({"a": a, "b": b, "c": c})
    assert set(table.loc[table["subject"].isin(["a0", "b0", "c0"]), "person"]) == {"a/a0"}


def test_a_subject_without_a_usable_scan_is_not_dealt_out():
    table = split({"a": cohort(6, 6, "a", failed=(1, 7))})
    assert set(table["subject"]) == {f"a{n}" for n in range(12)} - {"a1", "a7"}


@pytest.mark.parametrize("labels", [(0, 1), (1, 0)])
def test_a_converter_counts_as_a_case(labels):
    scans = pd.DataFrame({"scan": ["x", "y"], "subject": ["p", "p"], "label": labels})
    volumes = pd.DataFrame({"scan": ["x", "y"], "status": "ok", "sha256": ["1", "2"]})
    assert split({"a": (scans, volumes)})["label"].tolist() == [1]
