import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_curve

from fedbrain.errors import StudyError
from fedbrain.evaluation.bootstrap import intervals
from fedbrain.evaluation.metrics import balanced_accuracy
from fedbrain.evaluation.thresholds import called, choose_threshold, metrics_at, refuse_shared_persons


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
    splits = pd.DataFrame({"cohort": ["b", "b"], "subject": ["2", "9"], "person": ["p", "p"]})
    with pytest.raises(StudyError, match="validation and the test scans: 1;"):
        refuse_shared_persons(validation, test, splits)
