import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_curve

from fedbrain.errors import StudyError
from fedbrain.evaluation.bootstrap import intervals
from fedbrain.evaluation.metrics import balanced_accuracy
from fedbrain.evaluation.thresholds import (
    THRESHOLDS,
    called,
    choose_threshold,
    metrics_at,
    performance_at_thresholds,
    refuse_shared_persons,
)
from fedbrain.tables import PREDICTIONS, read_table, write_table


def test_youden_by_hand():
    # Between .3 and .6 all cases and all but one control are right.
    found = choose_threshold([0, 0, 0, 1, 1], [0.1, 0.3, 0.7, 0.6, 0.9])
    assert found == (pytest.approx(0.45), "youden", 1, pytest.approx(2 / 3), "")


def test_youden_reaches_the_best_point_of_the_roc_curve():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    scores = np.round(np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1), 2)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    found = choose_threshold(labels, scores)
    assert found.sensitivity + found.specificity - 1 == pytest.approx((true - false).max())


def test_among_equally_good_thresholds_the_nearest_to_a_half_is_taken():
    assert choose_threshold([0, 1, 0, 1], [0.1, 0.2, 0.6, 0.8]).value == pytest.approx(0.7)


def test_the_fixed_threshold_looks_at_no_score():
    assert choose_threshold([0, 1], [0.8, 0.9], rule="fixed")[:4] == (0.5, "fixed", 1, 0)


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 0], [0.1, 0.2], "no case"),
        ([1], [0.1], "no control"),
        ([], [], "no case"),
        ([0, 1], [0.3, 0.3], "one score"),
        ([0, 1], [0.3, np.nan], "not finite"),
        ([1, 0], [0.3, 0.6], "no threshold is better than chance"),
    ],
)
def test_where_there_is_nothing_to_choose_a_half_stands_with_a_reason(labels, scores, words):
    found = choose_threshold(labels, scores)
    assert found.value == 0.5
    assert words in found.reason


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="known: fixed, youden"):
        choose_threshold([0, 1], [0, 1], rule="best")


def test_metrics_at_a_threshold_are_those_of_the_calls_at_a_half():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 30), rng.random(30)
    at = metrics_at(0.37)
    assert at["balanced_accuracy"](labels, scores) == balanced_accuracy(labels, called(scores, 0.37))
    results = intervals(at, labels, [scores], np.arange(30), resamples=50)
    ones = intervals(metrics_at(0.5), labels, [called(scores, 0.37)], np.arange(30), resamples=50)
    assert str(results) == str(ones)  # NaN seed_sd on both sides
    assert np.isnan(called([np.nan], 0.5)).all()


def test_a_person_of_the_test_among_the_validation_scans_is_refused():
    validation = pd.DataFrame({"cohort": ["a", "b"], "subject": ["1", "2"]})
    test = pd.DataFrame({"cohort": ["a", "b"], "subject": ["3", "9"]})
    refuse_shared_persons(validation, test)
    splits = pd.DataFrame({"cohort": ["b", "b"], "subject": ["2", "9"], "person": ["p", "p"], "split": ["test"] * 2})
    with pytest.raises(StudyError, match="validation and the test scans: 1;"):
        refuse_shared_persons(validation, test, splits)


CELL = ("linear", "frozen", "fedavg")


def scored(rng, part, shift):
    rows = [(cohort, f"{part}{i}", pd.NA, i % 2) for cohort in ("north", "south") for i in range(30)]
    frame = pd.DataFrame(rows, columns=["cohort", "subject", "session", "label"])
    scores = np.clip(0.3 * frame["label"] + shift + 0.2 * rng.random(60), 0, 1)
    return frame.assign(score=scores).astype(PREDICTIONS)


def test_each_seed_meets_the_test_scans_with_its_own_threshold(tmp_path):
    """Scores of case and control part at 0.25 + shift: a fixed 0.5 misses it, and validation finds it for each seed."""
    rng = np.random.default_rng(2)
    shifts = {0: 0.0, 1: 0.4}
    test, validation = ({CELL: {k: scored(rng, part, v) for k, v in shifts.items()}} for part in "tv")
    table = performance_at_thresholds(test, validation, clients=["north", "south", "empty"], resamples=50)
    write_table(table, tmp_path / "thresholds.tsv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "thresholds.tsv", THRESHOLDS), table)
    north = table[(table["client"] == "north") & (table["metric"] == "balanced_accuracy")].set_index("rule")
    assert north.loc["youden", "threshold"] == pytest.approx(0.25 + 0.2, abs=0.03)
    assert north.loc["youden", "threshold_sd"] == pytest.approx(0.4 / np.sqrt(2), abs=0.05)
    assert north.loc["youden", "value"] == pytest.approx(1, abs=0.02)
    assert north.loc["fixed", "value"] < 0.85
    empty = table[(table["client"] == "empty") & (table["rule"] == "youden")]
    assert empty["value"].isna().all()
    assert empty["note"].str.contains("no test subject").all()
    assert empty["note"].str.contains("no case among the validation scans: 0.5 stands").all()


def test_validation_scans_of_every_seed_and_of_other_persons_are_needed():
    rng = np.random.default_rng(3)
    test, validation = ({CELL: {0: scored(rng, part, 0.1)}} for part in "tv")
    with pytest.raises(StudyError, match="no validation predictions of seed 1"):
        performance_at_thresholds({CELL: {1: test[CELL][0]}}, validation, clients=["north", "south"])
    with pytest.raises(StudyError, match="would flatter the test"):
        performance_at_thresholds(test, test, clients=["north", "south"])


def test_an_external_cohort_meets_the_threshold_that_the_cohorts_that_train_chose_together():
    rng = np.random.default_rng(4)
    test, validation = (scored(rng, part, 0.3) for part in "tv")
    outside = scored(rng, "x", 0.1).query("cohort == 'south'").assign(cohort="away")
    rows = [(frame, side) for frame, side in ((test, "test"), (validation, "validation"), (outside, "test"))]
    splits = pd.concat([frame[["cohort", "subject", "label"]].assign(split=side) for frame, side in rows])
    splits = splits.assign(person=splits["cohort"] + "/" + splits["subject"])
    everything = pd.concat([test, outside]).astype(PREDICTIONS)
    options = {"clients": ["north", "south", "away"], "resamples": 50, "splits": splits}
    table = performance_at_thresholds({CELL: {0: everything}}, {CELL: {0: validation}}, **options)
    chosen = table.query("metric == 'sensitivity'").set_index(["client", "rule"])
    expected = choose_threshold(validation["label"], validation["score"].astype(float)).value
    assert chosen.loc[("away", "youden"), "threshold"] == expected == chosen.loc[("pooled", "youden"), "threshold"]
    assert (
        "external: chosen on the validation scans of the cohorts that train, pooled"
        in chosen.loc[("away", "youden"), "note"]
    )
    assert pd.isna(chosen.loc[("away", "fixed"), "note"])
    high = outside[outside["label"] == 1]["score"].astype(float)
    assert chosen.loc[("away", "youden"), "value"] == pytest.approx((high >= expected).mean())
    assert chosen.loc[("pooled", "youden"), "subjects"] == 60  # without the external ones
