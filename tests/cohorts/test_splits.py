"""Subjects, not scans, are dealt out; by label within cohort; a person stays on one side, across cohorts too."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbrain.cohorts.splits import (
    assert_no_leakage,
    external_cohorts,
    find_duplicates,
    known_elsewhere,
    known_without,
    split_subjects,
)
from fedbrain.errors import StudyError


def cohort(cases, controls, prefix="p", visits=1, failed=(), sha=None):
    rows, volumes = [], []
    for number in range(cases + controls):
        for visit in range(visits):
            scan = f"sub-{prefix}{number}_ses-{visit}"
            rows.append({"scan": scan, "subject": f"{prefix}{number}", "label": int(number < cases)})
            content = (sha or {}).get(number, f"{prefix}{number}-{visit}")
            status = "failed" if number in failed else "ok"
            volumes.append({"scan": scan, "status": status, "sha256": f"{scan}.nii.gz", "voxels_sha256": content})
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


@pytest.mark.parametrize("how", ["dropped", "failed"])
def test_a_scan_that_is_not_used_still_tells_whose_head_it_is(how):
    """Subjects a2 and b3 share one image, by a visit of either that takes no part; their other visits do."""
    for seed in range(10):
        cohorts = {"a": cohort(6, 6, "a", visits=2), "b": cohort(6, 6, "b", visits=2)}
        for name, scan in (("a", "sub-a2_ses-1"), ("b", "sub-b3_ses-1")):
            here = cohorts[name][1]["scan"] == scan
            cohorts[name][1].loc[here, ["sha256", "voxels_sha256"]] = ["one file", "one head"]
        if how == "failed":
            cohorts["b"][1].loc[here, ["status", "voxels_sha256"]] = ["failed", None]
        scans, volumes = ({name: pair[n] for name, pair in cohorts.items()} for n in (0, 1))
        options = {"validation": 0.2, "test": 0.3, "link_ids": False, "seed": seed}
        dropped = {"b": {"sub-b3_ses-1"}} if how == "dropped" else None
        table = split_subjects(scans, volumes, dropped=dropped, **options)
        pair = table[table["subject"].isin(["a2", "b3"])]
        assert len(pair) == 2
        assert pair["person"].nunique() == pair["split"].nunique() == 1


def test_files_of_many_that_all_failed_make_nobody_one_person():
    one = cohort(6, 6, "a", visits=2)
    broken = one[1]["scan"].str.endswith("_ses-1")
    one[1].loc[broken, ["status", "sha256", "voxels_sha256"]] = ["failed", "a page that says 404", None]
    assert split({"a": one})["person"].nunique() == 12


def test_images_that_occur_twice_are_listed_with_what_is_the_same():
    a, b = cohort(2, 2, "a"), cohort(2, 2, "b", sha={0: "a1-0", 1: "x", 2: "x"})
    b[1].loc[1:2, "sha256"] = "one file"
    b[1].loc[3, ["status", "voxels_sha256"]] = ["failed", None]
    scans, volumes = {"a": a[0], "b": b[0]}, {"a": a[1], "b": b[1]}
    found = find_duplicates(scans, volumes)
    assert [tuple(row) for row in found.itertuples(index=False)] == [
        (1, "a", "sub-a1_ses-0", "a1", 1, "voxels"),
        (1, "b", "sub-b0_ses-0", "b0", 1, "voxels"),
        (2, "b", "sub-b1_ses-0", "b1", 1, "file"),
        (2, "b", "sub-b2_ses-0", "b2", 0, "file"),
    ]
    assert len(find_duplicates({"a": a[0]}, {"a": a[1]})) == 0


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
    volumes = pd.DataFrame({"scan": ["x", "y"], "status": "ok", "sha256": ["1", "2"], "voxels_sha256": ["1", "2"]})
    assert split({"a": (scans, volumes)})["label"].tolist() == [1]


def dropping(pair, dropped, **options):
    scans, volumes = pair
    return split_subjects(
        {"a": scans}, {"a": volumes}, **FRACTIONS | options, dropped={"a": set(scans["scan"].iloc[list(dropped)])}
    )


FRACTIONS = {"validation": 0.2, "test": 0.3, "link_ids": True, "seed": 0}


def test_a_subject_without_a_kept_scan_is_not_dealt_out_and_the_others_stay_where_they_are_told():
    pair = cohort(4, 6, visits=2)
    table = dropping(pair, [0, 1, 2])  # both visits of the first subject, one of the second
    assert set(table["subject"]) == {f"p{number}" for number in range(1, 10)}
    assert set(table.loc[table["subject"] == "p1", "label"]) == {1}
    assert dropping(pair, []).equals(split_subjects({"a": pair[0]}, {"a": pair[1]}, **FRACTIONS))
    # As if the scans had failed.
    failed = pair[1].assign(status=["failed"] * 3 + ["ok"] * 17)
    assert table.equals(split_subjects({"a": pair[0]}, {"a": failed}, **FRACTIONS))


@pytest.mark.parametrize(
    ("dropped", "lost"),
    [
        (range(4), "without a case"),
        (range(4, 10), "without a control"),
        (range(10), "without a case and without a control"),
    ],
)
def test_dropping_all_of_a_class_is_an_error_that_names_the_cohort(dropped, lost):
    with pytest.raises(StudyError, match=f"cohort a: quality.drop leaves it {lost}.*results/quality/a.tsv"):
        dropping(cohort(4, 6), dropped)


def test_a_cohort_that_never_had_cases_may_lose_scans():
    table = dropping(cohort(0, 6), [0])
    assert len(table) == 5


def test_dropping_all_that_would_train_is_an_error():
    with pytest.raises(StudyError, match="cohort a: quality.drop leaves it without a training subject"):
        dropping(cohort(1, 2), [2], validation=0, test=0.9)


def split_with_external(cohorts, external, **options):
    scans = {name: pair[0] for name, pair in cohorts.items()}
    volumes = {name: pair[1] for name, pair in cohorts.items()}
    settings = {"validation": 0.2, "test": 0.3, "link_ids": True, "seed": 0} | options
    return split_subjects(scans, volumes, external=external, **settings)


@pytest.mark.parametrize("order", [("a", "b", "ext"), ("ext", "a", "b")])
def test_an_external_cohort_is_all_test_and_the_others_are_dealt_out_as_without_it(order):
    pairs = {"a": cohort(7, 9, "a"), "b": cohort(5, 6, "b"), "ext": cohort(8, 4, "e", sha={1: "a2-0", 3: "b4-0"})}
    table = split_with_external({name: pairs[name] for name in order}, ["ext"])
    assert set(table.loc[table["cohort"] == "ext", "split"]) == {"test"}
    inside = table[table["cohort"] != "ext"].reset_index(drop=True)
    pd.testing.assert_frame_equal(inside, split({name: pairs[name] for name in order if name != "ext"}))
    assert external_cohorts(table) == ["ext"]
    assert external_cohorts(inside) == []


def test_a_person_of_a_training_cohort_has_no_part_in_an_external_test():
    pairs = {"ext": cohort(6, 6, "e", visits=2, sha={1: "a2-0"}), "a": cohort(7, 9, "a")}
    pairs["ext"][0].loc[lambda t: t["subject"] == "e5", "subject"] = "a4"  # one id in both
    scans, volumes = ({name: pair[k] for name, pair in pairs.items()} for k in (0, 1))
    table = split_with_external(pairs, ["ext"])
    assert_no_leakage(table)
    mine = table[table["cohort"] == "ext"]
    assert set(mine["subject"]) == {f"e{n}" for n in range(12)} - {"e1", "e5"}
    assert not set(mine["person"]) & set(table.loc[table["cohort"] == "a", "person"])
    known = known_elsewhere(scans, volumes, link_ids=True, external=["ext"])
    assert sorted(known["scan"]) == ["sub-e1_ses-0", "sub-e1_ses-1", "sub-e5_ses-0", "sub-e5_ses-1"]
    assert set(known["cohort"]) == {"ext"}
    assert known["reason"].str.contains("another cohort").all()
    assert "a4" in set(split_with_external(pairs, ["ext"], link_ids=False).query("cohort == 'ext'")["subject"])


def test_a_person_whose_scans_elsewhere_are_all_left_out_is_a_stranger():
    pairs = {"a": cohort(7, 9, "a"), "ext": cohort(4, 4, "e", sha={1: "a2-0"})}
    scans, volumes = ({name: pair[k] for name, pair in pairs.items()} for k in (0, 1))
    dropped = {"a": {"sub-a2_ses-0"}}
    assert not len(known_elsewhere(scans, volumes, link_ids=True, external=["ext"], dropped=dropped))
    table = split_subjects(
        scans, volumes, validation=0.2, test=0.3, link_ids=True, seed=0, dropped=dropped, external=["ext"]
    )
    assert "e1" in set(table["subject"])


def test_an_external_cohort_without_a_stranger_stops_the_study():
    pairs = {"a": cohort(4, 4, "a"), "ext": cohort(1, 1, "e", sha={0: "a2-0", 1: "a6-0"})}
    with pytest.raises(StudyError, match="cohort ext: it is external, and no subject is left to test on"):
        split_with_external(pairs, ["ext"])


def test_who_a_model_without_a_cohort_knows_from_elsewhere():
    rows = [("a", "1", "p", "train"), ("a", "2", "q", "test"), ("a", "3", "r", "validation"), ("a", "4", "s", "train")]
    rows += [("b", "1", "p", "train"), ("b", "2", "q", "test"), ("b", "3", "r", "validation"), ("b", "9", "t", "train")]
    table = pd.DataFrame(rows, columns=["cohort", "subject", "person", "split"])
    assert known_without("a", table) == {"1", "3"}  # q is a test person everywhere, s is nowhere else
    assert known_without("b", table) == {"1", "3"}
