import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from fedbrain.evaluation.bootstrap import interval
from fedbrain.evaluation.calibration import (
    CALIBRATION,
    CALIBRATION_METRICS,
    calibration_curve,
    calibration_curves,
    calibration_intercept,
    calibration_slope,
    ece,
    ece_if_calibrated,
    reason_uncalibrated,
    recalibration,
    wilson_interval,
)
from fedbrain.tables import PREDICTIONS, read_table, write_table


def overlapping(rng, n=120, a=-0.4, b=0.6):
    """Scores whose true recalibration has intercept a and slope b."""
    scores = expit(rng.normal(size=n) * 2)
    return (rng.random(n) < expit(a + b * logit(scores))).astype(int), scores


@pytest.mark.parametrize("weighted", [False, True])
def test_slope_and_intercept_agree_with_scikit_learns_logistic_regression(weighted):
    rng = np.random.default_rng(0)
    labels, scores = overlapping(rng)
    weights = rng.integers(0, 4, size=len(labels)).astype(float) if weighted else np.ones(len(labels))
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(logit(scores)[:, None], labels, sample_weight=weights)
    assert calibration_slope(labels, scores, weights) == pytest.approx(model.coef_[0, 0], abs=1e-5)
    if not weighted:
        found = recalibration(labels, scores)
        assert found.intercept == pytest.approx(model.intercept_[0], abs=1e-5)
        assert found.slope == calibration_slope(labels, scores)
        assert found.in_the_large == calibration_intercept(labels, scores)
        assert found.reason == ""


def test_calibration_in_the_large_makes_the_expected_number_of_cases_right():
    labels, scores = overlapping(np.random.default_rng(1))
    shift = calibration_intercept(labels, scores)
    assert expit(logit(scores) + shift).sum() == pytest.approx(labels.sum(), abs=1e-6)
    # All scores 0.5, a quarter cases: the intercept is the logit of a quarter.
    assert calibration_intercept([1, 0, 0, 0], [0.5] * 4) == pytest.approx(-np.log(3))


def test_scores_drawn_from_the_model_are_found_calibrated_and_a_distortion_is_found():
    rng = np.random.default_rng(2)
    right = expit(rng.normal(size=20_000))
    labels = (rng.random(len(right)) < right).astype(int)
    assert calibration_slope(labels, right) == pytest.approx(1, abs=0.05)
    assert calibration_intercept(labels, right) == pytest.approx(0, abs=0.05)
    extreme = expit(2 * logit(right) + 1)
    assert calibration_slope(labels, extreme) == pytest.approx(0.5, abs=0.03)
    assert recalibration(labels, extreme).intercept == pytest.approx(-0.5, abs=0.06)


@st.composite
def weighted_scans(draw):
    n = draw(st.integers(4, 25))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    labels[:2] = 0, 1
    scores = np.array(draw(st.lists(st.integers(0, 10), min_size=n, max_size=n))) / 10
    weights = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), dtype=float)
    weights[:2] += 1
    return labels, scores, weights


@settings(max_examples=120, deadline=None)
@given(weighted_scans())
def test_weights_are_copies_and_a_block_is_its_columns(case):
    labels, scores, weights = case
    copied = np.repeat(np.arange(len(labels)), weights.astype(int))
    block = np.stack([weights, np.ones_like(weights), weights[::-1]], axis=1)
    for metric in CALIBRATION_METRICS.values():
        alone = metric(labels, scores, weights)
        assert alone == pytest.approx(metric(labels[copied], scores[copied]), abs=1e-6, nan_ok=True)
        columns = [metric(labels, scores, column) for column in block.T]
        np.testing.assert_allclose(metric(labels, scores, block), columns, atol=1e-6)


@settings(max_examples=120, deadline=None)
@given(weighted_scans())
def test_the_slope_is_infinite_exactly_where_a_threshold_parts_the_classes(case):
    labels, scores, _ = case
    cases, controls = scores[labels == 1], scores[labels == 0]
    slope = calibration_slope(labels, scores)
    if np.ptp(scores) == 0:
        assert np.isnan(slope)
    elif cases.min() >= controls.max():
        assert slope == np.inf
    elif cases.max() <= controls.min():
        assert slope == -np.inf
    else:
        assert np.isfinite(slope)


def test_separation_and_equal_scores_are_a_reason_and_no_number():
    for scores, words in (
        ([0.2, 0.3, 0.3, 0.8], "separates cases from controls:"),  # with a tie on the border
        ([0.8, 0.7, 0.3, 0.2], "the wrong way round"),
        ([0.4] * 4, "one score"),
    ):
        found = recalibration([0, 0, 1, 1], scores)
        assert np.isnan(found.slope)
        assert np.isnan(found.intercept)
        assert np.isfinite(found.in_the_large)
        assert words in found.reason
    assert "5 controls, no case" in recalibration([0] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]).reason
    assert "no probabilities" in reason_uncalibrated("ece", [0, 1], [0.2, 1.2])
    assert "without a finite score" in reason_uncalibrated("calibration_slope", [0, 1], [0.2, np.nan])


def test_saturated_scores_are_finite():
    labels, scores = [0, 1, 0, 1, 1, 0], [0.0, 1.0, 1.0, 0.0, 0.6, 0.4]
    assert all(np.isfinite(metric(labels, scores)) for metric in CALIBRATION_METRICS.values())


def test_a_slope_that_is_infinite_in_many_resamples_has_no_upper_limit():
    labels = np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([0.1, 0.2, 0.55, 0.5, 0.8, 0.9])  # without the third or the fourth scan: separated
    value, low, high = interval(calibration_slope, labels, scores, np.arange(6), resamples=500)
    assert value == pytest.approx(calibration_slope(labels, scores))
    assert low < np.inf
    assert np.isnan(high)


def test_ece_by_hand():
    # Two bins of two: means .2 and .8; shares 0 and 1/2.
    assert ece([0, 0, 1, 0], [0.1, 0.3, 0.7, 0.9], bins=2) == pytest.approx((2 * 0.2 + 2 * 0.3) / 4)
    # Equal scores are never parted: one bin holds all.
    assert ece([0, 0, 1, 0], [0.5] * 4, bins=2) == pytest.approx(0.25)
    assert np.isnan(ece([0, 1], [0.5, 1.5]))
    assert ece([1, 1], [0.9, 0.7]) == pytest.approx(0.2)  # defined on one class


def test_ece_without_ties_agrees_with_a_loop_over_sorted_blocks():
    rng = np.random.default_rng(3)
    labels, scores = overlapping(rng, n=200)
    blocks = np.split(np.argsort(scores), 10)
    expected = sum(abs(labels[block].mean() - scores[block].mean()) for block in blocks) / 10
    assert ece(labels, scores) == pytest.approx(expected)


def test_chance_alone_makes_an_error_that_shrinks_with_the_number_of_scans():
    rng = np.random.default_rng(4)
    scores = expit(rng.normal(size=2000))
    few, many = (ece_if_calibrated(scores[:n], np.arange(n), draws=300)[0] for n in (50, 2000))
    assert few == pytest.approx(many * np.sqrt(40), rel=0.25)
    drawn = [ece((rng.random(50) < scores[:50]).astype(int), scores[:50]) for _ in range(300)]
    assert few == pytest.approx(np.mean(drawn), rel=0.05)
    # Two scans of each of 25 subjects with one score each: as if there were 25 scans.
    doubled = ece_if_calibrated(np.tile(scores[:25], 2), np.tile(np.arange(25), 2), bins=5, draws=300)
    assert doubled == pytest.approx(ece_if_calibrated(scores[:25], np.arange(25), bins=5, draws=300))


def test_the_curves_points_are_the_bins_of_the_error():
    labels, scores = overlapping(np.random.default_rng(5), n=90)
    points = calibration_curve(labels, scores, np.arange(90), bins=6)
    assert [point.scans for point in points] == [15] * 6
    assert sum(point.cases for point in points) == labels.sum()
    assert sum(abs(point.score - point.share) for point in points) / 6 == pytest.approx(ece(labels, scores, bins=6))
    assert all(point.low <= point.share <= point.high for point in points)
    with pytest.raises(ValueError, match="0..1"):
        calibration_curve([0, 1], [0.5, 2], [1, 2])


def test_the_curves_intervals_are_wilsons_over_subjects():
    for cases in (0, 3, 10):
        expected = binomtest(cases, 10).proportion_ci(0.9, method="wilson")
        assert wilson_interval(cases / 10, 10, 0.9) == pytest.approx((expected.low, expected.high), abs=1e-12)
    labels, scores, subjects = [0, 0, 1, 1], [0.1, 0.1, 0.2, 0.2], ["a", "a", "b", "b"]
    (point,) = calibration_curve(labels, scores, subjects, bins=1)
    assert (point.low, point.high) == wilson_interval(0.5, 2)
    assert (point.scans, point.subjects) == (4, 2)


def test_the_table_has_the_curve_of_every_seed_and_a_reason_where_there_is_none(tmp_path):
    rng = np.random.default_rng(6)
    frames = {}
    for seed in (3, 5):
        labels, scores = overlapping(rng, n=60)
        cohorts = np.repeat(["north", "south"], 30)
        frame = pd.DataFrame({"cohort": cohorts, "subject": [f"{i:02d}" for i in range(60)], "session": pd.NA})
        frames[seed] = frame.assign(label=np.arange(60) % 2, score=scores).astype(PREDICTIONS)
    frames[5].loc[0, "score"] = pd.NA
    table = calibration_curves({("linear", "frozen", "fedavg"): frames}, clients=["north", "south", "empty"], bins=4)
    write_table(table, tmp_path / "calibration.tsv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "calibration.tsv", CALIBRATION), table)
    south = table[(table["client"] == "south") & (table["seed"] == 5)]
    own = frames[5].query("cohort == 'south'")
    labels, scores = own["label"].to_numpy(int), own["score"].to_numpy(float)
    points = calibration_curve(labels, scores, own["subject"].to_numpy(str), bins=4)
    assert south["share"].tolist() == [point.share for point in points]
    assert south["ece"].unique() == pytest.approx([ece(labels, scores, bins=4)])
    chance = ece_if_calibrated(scores, own["subject"].to_numpy(str), bins=4)
    assert tuple(south[["ece_by_chance", "ece_by_chance_95"]].iloc[0]) == pytest.approx(chance)
    for client, seed, words in (
        ("north", 5, "1 scan without a finite score"),
        ("empty", 3, "no test subject: no curve"),
    ):
        none = table[(table["client"] == client) & (table["seed"] == seed)]
        assert none["note"].tolist() == [words]
