import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    recall_score,
    roc_auc_score,
)

from fedbrain.evaluation.metrics import (
    METRICS,
    auc,
    average_precision,
    balanced_accuracy,
    brier,
    reason_undefined,
    sensitivity,
    specificity,
)


@st.composite
def scored_scans(draw):
    """Labels of both classes, scores with many ties, integer weights such as a bootstrap makes."""
    n = draw(st.integers(2, 40))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    labels[:2] = 0, 1
    scores = np.array(draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))) / 8
    weights = np.array(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), dtype=float)
    weights[:2] += 1
    return labels, scores, weights


@settings(max_examples=100, deadline=None)
@given(scored_scans())
def test_metrics_agree_with_scikit_learn_with_and_without_weights(case):
    labels, scores, weights = case
    for w in (None, weights):
        assert auc(labels, scores, w) == pytest.approx(roc_auc_score(labels, scores, sample_weight=w), abs=1e-12)
        assert average_precision(labels, scores, w) == pytest.approx(
            average_precision_score(labels, scores, sample_weight=w), abs=1e-12
        )
        assert brier(labels, scores, w) == pytest.approx(brier_score_loss(labels, scores, sample_weight=w), abs=1e-12)
        called = scores >= 0.5
        assert sensitivity(labels, scores, w) == pytest.approx(recall_score(labels, called, sample_weight=w))
        assert specificity(labels, scores, w) == pytest.approx(
            recall_score(labels, called, pos_label=0, sample_weight=w)
        )
        assert balanced_accuracy(labels, scores, w) == pytest.approx(
            balanced_accuracy_score(labels, called, sample_weight=w)
        )


@settings(max_examples=60, deadline=None)
@given(scored_scans())
def test_a_block_of_weightings_equals_one_weighting_at_a_time(case):
    labels, scores, weights = case
    block = np.stack([weights, np.ones_like(weights), weights[::-1]], axis=1)
    for metric in METRICS.values():
        one_by_one = [metric(labels, scores, column) for column in block.T]
        np.testing.assert_allclose(metric(labels, scores, block), one_by_one, rtol=1e-14)


@settings(max_examples=60, deadline=None)
@given(scored_scans())
def test_integer_weights_are_copies(case):
    labels, scores, weights = case
    copied = np.repeat(np.arange(len(labels)), weights.astype(int))
    for metric in METRICS.values():
        assert metric(labels, scores, weights) == pytest.approx(metric(labels[copied], scores[copied]), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(scored_scans())
def test_auc_depends_on_the_order_of_the_scores_alone_and_turns_over_with_them(case):
    labels, scores, _ = case
    assert auc(labels, np.exp(3 * scores) - 7) == auc(labels, scores)
    assert auc(labels, -scores) == pytest.approx(1 - auc(labels, scores))
    assert auc(1 - labels, scores) == pytest.approx(1 - auc(labels, scores))


def test_auc_by_hand():
    # Pairs (case, control): .9>.1, .9>.5, .5>.1, .5=.5: 3.5 of 4.
    assert auc([1, 1, 0, 0], [0.9, 0.5, 0.1, 0.5]) == 3.5 / 4


def test_average_precision_and_brier_by_hand():
    # From .9 down: case (1/1), tie of case and control (2/3). Each case is half of the recall.
    assert average_precision([1, 1, 0, 0], [0.9, 0.5, 0.1, 0.5]) == pytest.approx((1 + 2 / 3) / 2)
    assert brier([1, 0], [0.8, 0.4]) == pytest.approx((0.2**2 + 0.4**2) / 2)


def test_a_brier_score_needs_probabilities():
    assert np.isnan(brier([0, 1], [0.2, 1.5]))


def test_another_threshold_can_be_asked_for():
    labels, scores = [1, 1, 0, 0], [0.9, 0.4, 0.35, 0.1]
    assert sensitivity(labels, scores, threshold=0.38) == 1
    assert specificity(labels, scores, threshold=0.3) == 0.5
    assert balanced_accuracy(labels, scores, threshold=0.3) == 0.75


def test_the_threshold_itself_counts_as_a_case():
    assert sensitivity([1, 1], [0.5, 0.49]) == 0.5
    assert specificity([0, 0], [0.5, 0.49]) == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_its_own_rate_and_a_brier_score_and_nothing_that_compares_classes(label):
    labels, scores = [label] * 3, [0.2, 0.6, 0.7]
    assert np.isnan(auc(labels, scores))
    assert np.isnan(balanced_accuracy(labels, scores))
    assert np.isnan(average_precision(labels, scores))
    assert brier(labels, scores) == pytest.approx(np.mean((np.array(scores) - label) ** 2))
    values = {"sensitivity": sensitivity(labels, scores), "specificity": specificity(labels, scores)}
    own, other = ("sensitivity", "specificity") if label else ("specificity", "sensitivity")
    assert values[own] == pytest.approx(2 / 3 if label else 1 / 3)
    assert np.isnan(values[other])


def test_the_reason_is_in_words_exactly_where_a_value_is_missing():
    assert reason_undefined("auc", 0, 5) == "one class only in test: 5 controls, no case: no AUC"
    assert reason_undefined("balanced_accuracy", 1, 0) == (
        "one class only in test: 1 case, no control: no balanced accuracy"
    )
    assert reason_undefined("auc", 0, 0) == "no test subject: no AUC"
    for name, metric in METRICS.items():
        for cases, controls in ((0, 2), (2, 0), (2, 2), (0, 0)):
            value = metric([1] * cases + [0] * controls, np.linspace(0, 1, cases + controls))
            assert bool(reason_undefined(name, cases, controls)) == bool(np.isnan(value)), (name, cases, controls)


def test_a_score_that_is_not_finite_gives_no_value():
    assert all(np.isnan(metric([0, 1, 1], [0.1, np.nan, 0.9])) for metric in METRICS.values())


def test_labels_other_than_zero_and_one_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="0 .control. or 1 .case."):
        auc([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="one length"):
        auc([0, 1], [0.1])
    with pytest.raises(ValueError, match="weights"):
        auc([0, 1], [0.1, 0.2], np.ones((3, 4)))
