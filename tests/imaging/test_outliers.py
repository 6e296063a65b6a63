"""Outliers by hand-computed robust z, in the bad direction only; limits; what is dropped by which choice."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbrain.imaging import outliers, quality
from fedbrain.tables import QUALITY, VOLUMES, write_table

SETTINGS = {"outlier_z": 3.5, "limits": {}, "drop": "none"}


def cohort(failed=0, **metrics):
    """Scans s0, s1, ... with the given values; ``failed`` more without any."""
    count = len(next(iter(metrics.values())))
    table = pd.DataFrame({name: [*values, *[None] * failed] for name, values in metrics.items()}, dtype="Float64")
    table["scan"] = [f"s{number}" for number in range(count + failed)]
    table["status"] = ["ok"] * count + ["failed"] * failed
    table["reason"] = [None] * count + ["the file is empty"] * failed
    table["shard"] = 0
    return table.reindex(columns=[*VOLUMES, "shard", *metrics]).astype(VOLUMES)


def assess(table, **changes):
    return outliers.assess(table, SETTINGS | changes)


def test_robust_z_by_hand():
    # median 3, absolute deviations 2 1 0 1 97, their median 1
    z = outliers.robust_z(np.array([1.0, 2, 3, 4, 100]))
    np.testing.assert_allclose(z, np.array([-2, -1, 0, 1, 97]) / 1.4826, rtol=1e-4)


def test_where_most_values_are_equal_the_mean_deviation_stands_in():
    # median 0, median deviation 0, mean deviation 0.5 / 5
    z = outliers.robust_z(np.array([0, 0, 0, 0, 0.5]))
    np.testing.assert_allclose(z, [0, 0, 0, 0, 0.5 / (1.2533141 * 0.1)], rtol=1e-5)
    assert outliers.robust_z(np.full(6, 2.5)).tolist() == [0] * 6


def test_of_fewer_than_five_values_nothing_is_said():
    assert np.isnan(outliers.robust_z(np.array([1.0, 1, 1, 99]))).all()
    z = outliers.robust_z(np.array([1.0, np.nan, 2, 3, np.nan, 4, 5]))
    assert np.isnan(z).tolist() == [False, True, False, False, True, False, False]


@given(st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=30), st.floats(0.5, 20), st.floats(-50, 50))
def test_robust_z_does_not_depend_on_unit_or_origin(values, scale, shift):
    values = np.round(values, 3)
    np.testing.assert_allclose(
        outliers.robust_z(values * scale + shift), outliers.robust_z(values), rtol=1e-4, atol=1e-4
    )


def test_for_gaussian_values_it_is_the_ordinary_z():
    values = np.random.default_rng(0).normal(10, 3, 20_000)
    np.testing.assert_allclose(outliers.robust_z(values), (values - 10) / 3, atol=0.08)


SPREAD = [0.0, 0.01, -0.01, 0.02, -0.02, 0.015, -0.015]


@pytest.mark.parametrize(
    ("metric", "middle", "flagged"),
    [("snr_white_matter", 6, {"-"}), ("cjv", 0.6, {"+"}), ("smoothness_mm", 4, {"+", "-"}), ("mask_dice", 0.8, {"-"})],
)
def test_only_the_bad_direction_is_flagged(metric, middle, flagged):
    usual = [middle + away for away in SPREAD]
    table = assess(cohort(**{metric: [*usual, middle + 0.15, middle - 0.15]}))
    assert {sign for sign, flag in zip("+-", table["flagged"].iloc[-2:]) if flag} == flagged
    assert table["flagged"].iloc[:-2].sum() == 0
    assert table["kept"].tolist() == [1] * 9


def test_a_handful_of_voxels_at_the_edge_is_no_outlier_and_a_slice_of_brain_is():
    table = assess(cohort(edge_fraction=[0, 0, 0, 0, 0, 0, 0.0004, 0.03]))
    assert table["flagged"].tolist() == [0] * 7 + [1]
    assert table["worst_z"].iloc[6] == 0


def test_reasons_name_metric_value_and_cohort_furthest_first_and_a_limit_before():
    usual = {"cjv": [0.5 + away for away in SPREAD], "snr_white_matter": [6 + away for away in SPREAD]}
    values = {"cjv": [*usual["cjv"], 0.9], "snr_white_matter": [*usual["snr_white_matter"], 5.7]}
    table = assess(cohort(**values, mask_dice=[0.96] * 7 + [0.9]), limits={"mask_dice": {"min": 0.93}})
    parts = table["reason"].iloc[-1].split("; ")
    assert parts[0] == "mask_dice 0.9 is under the limit 0.93"
    # medians of eight: 0.5025 and 5.9975 or so; deviations' medians by numpy
    for place, name in ((1, "cjv"), (2, "snr_white_matter")):
        z = outliers.robust_z(np.array(values[name]))[-1]
        assert parts[place] == f"{name} {values[name][-1]:.5g} (z {z:+.1f}, median {np.median(values[name]):.5g})"
    assert table["reason"].iloc[:-1].isna().all()


def test_limits_hold_in_a_cohort_of_one_and_for_both_sides():
    limits = {"brain_volume_ml": {"min": 900, "max": 2000}}
    for value, words in (
        (880, "brain_volume_ml 880 is under the limit 900"),
        (2100, "brain_volume_ml 2100 is over the limit 2000"),
    ):
        table = assess(cohort(brain_volume_ml=[value]), limits=limits)
        assert table["reason"].tolist() == [words]
        assert table["worst_metric"].isna().all()
    assert assess(cohort(brain_volume_ml=[900]), limits=limits)["flagged"].tolist() == [0]


def test_what_could_not_be_measured_is_flagged_where_it_is_expected_and_never_beyond_a_limit():
    limits = {"mask_dice": {"min": 0.93}}
    values = {"cjv": [0.5, 0.5, None], "mask_dice": [0.95, None, 0.95], "header_conflict": [0, 0, None]}
    rare = {"rim_intensity": [None, 0.3, None]}  # most have none
    table = assess(cohort(failed=1, **values, **rare), limits=limits, drop="limits")
    assert table["flagged"].tolist() == [0, 1, 1, 0]
    assert table["kept"].tolist() == [1, 1, 1, 0]
    assert table["reason"].tolist()[1] == "mask_dice has no value, so its limit says nothing"
    words = "cjv has no value, though most scans have one; header_conflict has no value, though most scans have one"
    assert sorted(table["reason"][2].split("; ")) == words.split("; ")
    assert assess(cohort(failed=1, **values), drop="flagged")["kept"].tolist() == [1, 0, 0, 0]


def test_a_failed_scan_is_a_row_with_its_reason_and_takes_no_part_in_the_median():
    table = assess(cohort(failed=3, cjv=[0.5, 0.51, 0.52, 0.53, 0.54]))
    assert table["kept"].tolist() == [1] * 5 + [0] * 3
    assert table["reason"].iloc[-1] == "the file is empty"
    assert table["flagged"].sum() == 0
    assert list(table.columns) == [*QUALITY, "cjv"]


def test_what_is_dropped_by_which_choice():
    metrics = cohort(failed=1, cjv=[*SPREAD, 0.9], mask_dice=[0.96] * 6 + [0.91, 0.96])
    dropped = {}
    for drop in ("none", "limits", "flagged"):
        table = assess(metrics, limits={"mask_dice": {"min": 0.93}}, drop=drop)
        assert table["flagged"].tolist() == [0] * 6 + [1, 1, 0]
        dropped[drop] = outliers.dropped_scans({"a": table, "b": table})
    assert {drop: sorted(zip(found["cohort"], found["scan"])) for drop, found in dropped.items()} == {
        "none": [],
        "limits": [("a", "s6"), ("b", "s6")],
        "flagged": [("a", "s6"), ("a", "s7"), ("b", "s6"), ("b", "s7")],
    }
    assert dropped["limits"]["reason"].str.contains("under the limit").all()


def test_shards_are_read_with_their_number_and_with_metrics_that_one_lacks(tmp_path):
    write_table(cohort(cjv=[0.5]).drop(columns="shard"), tmp_path / "3.tsv")
    write_table(cohort(failed=1, cjv=[0.6], mask_dice=[0.9]).drop(columns="shard"), tmp_path / "11.tsv")
    table = outliers.read_shards([tmp_path / "3.tsv", tmp_path / "11.tsv"])
    assert table["shard"].tolist() == [3, 11, 11]
    assert table["mask_dice"].isna().tolist() == [True, False, True]
    assert outliers.dropped_scans({"a": assess(outliers.read_shards([]))}).empty


def test_every_metric_that_is_measured_is_known_and_documented(root):
    assert set(quality.COLUMNS) == set(outliers.METRICS)
    text = (root / "docs/quality.md").read_text()
    assert [name for name in outliers.METRICS if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"mask_dize": {"min": 0.9}}, "quality.limits: unknown metric 'mask_dize'; did you mean 'mask_dice'?"),
        ({"zzz": {"min": 1}}, "known: brain_volume_ml"),
        ({"cjv": {"min": 2, "max": 1}}, "quality.limits.cjv: min 2 is over max 1"),
    ],
)
def test_limits_that_cannot_be_meant_are_told(limits, message):
    assert any(message in problem for problem in outliers.problems(SETTINGS | {"limits": limits}))
    assert not list(outliers.problems(SETTINGS | {"limits": {"cjv": {"max": 1}}}))
