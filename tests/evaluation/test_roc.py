import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from fedbrain.evaluation.bootstrap import interval
from fedbrain.evaluation.metrics import auc
from fedbrain.evaluation.roc import RATES, roc_curves, sensitivities
from fedbrain.tables import PREDICTIONS

CELL = ("linear", "frozen", "fedavg")


@st.composite
def a_model(draw):
    labels = draw(st.lists(st.integers(0, 1), min_size=2, max_size=25).filter(lambda x: len(set(x)) == 2))
    scores = draw(st.lists(st.integers(0, 6), min_size=len(labels), max_size=len(labels)))
    weights = draw(st.lists(st.integers(1, 3), min_size=len(labels), max_size=len(labels)))
    return np.array(labels), np.array(scores) / 6, np.array(weights)


@settings(max_examples=60, deadline=None)
@given(a_model())
def test_the_area_under_the_curve_is_the_auc_weighted_or_not(model):
    labels, scores, weights = model
    rates = np.linspace(0, 1, 20_001)
    curves = sensitivities(labels, scores, rates, np.stack([np.ones(len(labels)), weights], axis=1))
    areas = np.trapezoid(curves, rates, axis=0)
    assert areas == pytest.approx([auc(labels, scores), auc(labels, scores, weights)], abs=2e-3)
    assert (np.diff(curves, axis=0) >= -1e-12).all()


@settings(max_examples=30, deadline=None)
@given(a_model())
def test_between_thresholds_the_curve_is_that_of_scikit_learn(model):
    labels, scores, _ = model
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    inside = np.setdiff1d(RATES, false)  # where the curve does not stand upright
    assert sensitivities(labels, scores, inside) == pytest.approx(np.interp(inside, false, true))


def test_an_upright_step_gives_its_upper_end_and_one_class_gives_nothing():
    assert sensitivities([1, 1, 0, 0], [0.9, 0.4, 0.5, 0.1], [0, 0.25, 0.5, 1]).tolist() == [0.5, 0.5, 1, 1]
    assert np.isnan(sensitivities([0, 0], [0.1, 0.2], [0, 1])).all()


def predictions(seed, scans=1):
    rng = np.random.default_rng(7)
    rows = [("a", f"{n}", f"{k}", int(n < 25)) for n in range(60) for k in range(scans)]
    frame = pd.DataFrame(rows, columns=["cohort", "subject", "session", "label"])
    own = np.repeat(rng.normal(size=60), scans)
    score = frame["label"] + own + 0.3 * np.random.default_rng(seed).normal(size=60).repeat(scans)
    return frame.assign(score=1 / (1 + np.exp(-score))).astype(PREDICTIONS)


def test_the_mean_curve_is_that_of_its_seeds_and_lies_within_its_band():
    table = roc_curves({CELL: {0: predictions(0), 4: predictions(4)}}, clients=["a"], resamples=300)
    mean = table[table["seed"].isna()]
    seeds = table.dropna(subset=["seed"]).pivot(index="fpr", columns="seed", values="tpr")
    assert list(seeds.columns) == [0, 4]
    np.testing.assert_allclose(mean["tpr"], seeds.mean(axis=1))
    assert (mean["low"] <= mean["tpr"] + 0.08).all()
    assert (mean["high"] >= mean["tpr"] - 0.08).all()
    # A band point by point holds more than the area does: its edges enclose the AUC's interval.
    frame = predictions(0)
    one = roc_curves({CELL: {0: frame}}, clients=["a"], resamples=2000)
    one = one[one["seed"].isna()]
    _, low, high = interval(auc, frame["label"], frame["score"], frame["subject"], resamples=2000)
    assert np.trapezoid(one["low"], one["fpr"]) < low
    assert np.trapezoid(one["high"], one["fpr"]) > high


def test_copied_scans_of_a_subject_narrow_nothing_and_the_order_of_rows_plays_no_part():
    once, thrice = (roc_curves({CELL: {0: predictions(0, scans)}}, clients=["a"], resamples=200) for scans in (1, 3))
    pd.testing.assert_frame_equal(once, thrice)
    turned = roc_curves({CELL: {0: predictions(0).iloc[::-1]}}, clients=["a"], resamples=200)
    pd.testing.assert_frame_equal(once, turned)


def test_one_class_has_no_curve():
    frame = predictions(0)
    table = roc_curves({CELL: {0: frame[frame["label"] == 0]}}, clients=["a"], resamples=50)
    assert table["tpr"].isna().all()
    assert table["low"].isna().all()
    assert roc_curves({}, clients=["a"]).empty


def test_external_scans_have_no_part_in_the_curve():
    inside = predictions(0)
    outside = inside.assign(cohort="away", score=1 - inside["score"])
    sides = ["train", *["test"] * (len(inside) - 1)]
    splits = pd.concat([inside.assign(split=sides), outside.assign(split="test")])
    splits = splits.assign(person=splits["cohort"] + "/" + splits["subject"])[
        ["cohort", "subject", "person", "label", "split"]
    ]
    both = pd.concat([inside, outside])
    found = roc_curves({CELL: {0: both}}, clients=["a", "away"], splits=splits, resamples=50)
    pd.testing.assert_frame_equal(found, roc_curves({CELL: {0: inside}}, clients=["a"], splits=splits, resamples=50))
