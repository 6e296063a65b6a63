import numpy as np
import pytest
from scipy.stats import bootstrap, norm
from sklearn.metrics import roc_auc_score

from fedbrain.evaluation.bootstrap import (
    auc_interval,
    interval,
    intervals,
    limits,
    replicates,
    resampled_counts,
    seed_mean_interval,
    subject_strata,
)
from fedbrain.evaluation.metrics import METRICS, auc, balanced_accuracy, sensitivity


def binormal(rng, controls, cases, separation=1.2):
    labels = np.repeat([0, 1], [controls, cases])
    scores = norm.cdf(rng.normal(size=len(labels)) + separation * (labels - 0.5))
    return labels, scores, np.arange(len(labels))


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_one_scan_per_subject_agrees_with_scipys_two_sample_bootstrap(method, level):
    labels, scores, subjects = binormal(np.random.default_rng(1), 35, 22)

    def mann_whitney(cases, controls, axis):
        cases, controls = np.moveaxis(cases, axis, -1), np.moveaxis(controls, axis, -1)
        return (cases[..., :, None] > controls[..., None, :]).mean(axis=(-2, -1))

    expected = bootstrap(
        (scores[labels == 1], scores[labels == 0]),
        mann_whitney,
        n_resamples=20_000,
        batch=500,
        confidence_level=level,
        method={"percentile": "percentile", "bca": "BCa"}[method],
        rng=np.random.default_rng(2),
    ).confidence_interval
    value, low, high = auc_interval(labels, scores, subjects, resamples=20_000, method=method, level=level)
    assert value == pytest.approx(roc_auc_score(labels, scores))
    # Two independent sets of 20,000 resamples: their limits differ by Monte Carlo error, about 0.001 here.
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=4e-3)


@pytest.mark.parametrize("scans", [1, 3])
def test_every_resample_equals_scikit_learn_on_the_drawn_subjects(scans):
    rng = np.random.default_rng(21)
    subjects = np.repeat(np.arange(40), scans)
    labels = (subjects % 3 == 0).astype(int)
    scores = np.round(norm.cdf(rng.normal(size=len(labels)) + labels), 1)  # with ties
    subject, strata = subject_strata(labels, subjects)
    drawn = replicates({"auc": auc}, labels, [scores, 1 - scores], subject, strata, resamples=50, seed=4)["auc"]
    (counts,) = resampled_counts(strata, 50, 4, block=50)
    for resample in range(50):
        copies = np.repeat(np.arange(len(labels)), counts[subject, resample].astype(int))
        for values, of_model in zip(drawn, (scores, 1 - scores)):
            assert values[resample] == pytest.approx(roc_auc_score(labels[copies], of_model[copies]), abs=1e-12)


def test_balanced_accuracy_agrees_with_binomial_counts():
    # Under the stratified bootstrap sensitivity and specificity are binomial proportions.
    labels = np.repeat([0, 1], [40, 20])
    scores = np.r_[np.full(30, 0.1), np.full(10, 0.9), np.full(15, 0.9), np.full(5, 0.1)]
    value, low, high = interval(balanced_accuracy, labels, scores, np.arange(60), resamples=20_000)
    rng = np.random.default_rng(0)
    expected = (rng.binomial(40, 0.75, 200_000) / 40 + rng.binomial(20, 0.75, 200_000) / 20) / 2
    assert value == 0.75
    assert (low, high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])), abs=0.013)  # grid of 1/80


def test_the_interval_covers_the_true_auc_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    true = norm.cdf(1.2 / np.sqrt(2))
    hits = {"percentile": 0, "bca": 0}
    studies = 300
    for study in range(studies):
        labels, scores, subjects = binormal(rng, 30, 30)
        for method in hits:
            _, low, high = auc_interval(labels, scores, subjects, resamples=600, seed=study, method=method)
            hits[method] += low <= true <= high
    assert all(0.88 <= n / studies <= 0.99 for n in hits.values()), hits


def test_copied_scans_of_a_subject_add_no_certainty():
    labels, scores, subjects = binormal(np.random.default_rng(4), 20, 15)
    once = auc_interval(labels, scores, subjects, resamples=2000)
    thrice = auc_interval(np.tile(labels, 3), np.tile(scores, 3), np.tile(subjects, 3), resamples=2000)
    assert thrice == pytest.approx(once, abs=1e-12)
    as_if_independent = auc_interval(np.tile(labels, 3), np.tile(scores, 3), np.arange(105), resamples=2000)
    assert as_if_independent[2] - as_if_independent[1] < 0.7 * (once[2] - once[1])


def test_neither_the_order_of_rows_nor_the_size_of_a_block_plays_a_part(monkeypatch):
    labels, scores, subjects = binormal(np.random.default_rng(5), 17, 12)
    subjects = np.array([f"s{number // 2}" for number in subjects])
    expected = auc_interval(labels, scores, subjects, resamples=999)
    order = np.random.default_rng(6).permutation(len(labels))
    assert auc_interval(labels[order], scores[order], subjects[order], resamples=999) == expected
    monkeypatch.setattr("fedbrain.evaluation.bootstrap.BLOCK", 29 * 7)
    assert auc_interval(labels, scores, subjects, resamples=999) == expected
    assert auc_interval(labels, scores, subjects, resamples=999, seed=1)[1:] != expected[1:]


def test_every_resample_holds_as_many_subjects_of_each_stratum_as_the_test_set():
    strata = [np.array([0, 3, 4]), np.array([1, 2])]
    counts = np.concatenate(list(resampled_counts(strata, 5000, 0, block=512)), axis=1)
    assert counts.shape == (5, 5000)
    assert (counts[strata[0]].sum(axis=0) == 3).all()
    assert (counts[strata[1]].sum(axis=0) == 2).all()
    np.testing.assert_allclose(counts.mean(axis=1), 1, atol=0.05)


def test_a_subject_that_converts_is_in_the_stratum_of_cases_with_its_own_labels():
    labels, subjects = [0, 1, 0, 0, 1], ["b", "b", "a", "c", "d"]
    subject, strata = subject_strata(labels, subjects)
    assert subject.tolist() == [1, 1, 0, 2, 3]
    assert [stratum.tolist() for stratum in strata] == [[0, 2], [1, 3]]
    # Only the converter supplies controls here: resamples without it have no AUC and are left out.
    value, low, high = auc_interval([0, 1, 1], [0.5, 0.4, 0.6], ["x", "x", "y"], resamples=500)
    assert value == 0.5
    assert 0 <= low <= high <= 1


def test_several_seeds_share_resamples_and_their_mean_is_bounded():
    labels, scores, subjects = binormal(np.random.default_rng(7), 25, 25)
    same = seed_mean_interval(auc, labels, [scores, scores, scores], subjects, resamples=1000)
    assert same[:3] == pytest.approx(auc_interval(labels, scores, subjects, resamples=1000), abs=1e-12)
    assert same.seed_sd == pytest.approx(0, abs=1e-12)
    # A model and its mirror image: in every resample their AUCs add up to 1, so the mean has no spread over subjects.
    mirrored = seed_mean_interval(auc, labels, [scores, -scores], subjects, resamples=1000)
    assert mirrored[:3] == pytest.approx((0.5, 0.5, 0.5), abs=1e-12)
    assert mirrored.seed_sd == pytest.approx(abs(2 * auc(labels, scores) - 1) / np.sqrt(2))


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_what_is_undefined_stays_undefined_and_what_is_certain_has_no_width(method):
    one_class = auc_interval([0, 0, 0], [0.1, 0.2, 0.3], [1, 2, 3], resamples=100, method=method)
    assert np.isnan(one_class).all()
    separated = auc_interval([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [1, 2, 3, 4], resamples=100, method=method)
    assert separated == (1, 1, 1)
    one_case = auc_interval([0, 0, 0, 1], [0.1, 0.3, 0.6, 0.5], [1, 2, 3, 4], resamples=500, method=method)
    assert one_case[0] == pytest.approx(2 / 3)
    assert 0 <= one_case[1] < one_case[2] <= 1
    # Sensitivity needs no control: it has a value and an interval on cases alone.
    assert interval(sensitivity, [1, 1], [0.2, 0.7], [1, 2], resamples=500, method=method)[0] == 0.5


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_metrics_computed_together_equal_metrics_computed_alone(method):
    labels, scores, subjects = binormal(np.random.default_rng(8), 12, 9)
    together = intervals(METRICS, labels, [scores], subjects, resamples=400, method=method)
    for name, metric in METRICS.items():
        assert together[name][:3] == interval(metric, labels, scores, subjects, resamples=400, method=method)


def test_a_wrong_method_or_level_is_refused():
    with pytest.raises(ValueError, match="known: percentile, bca"):
        auc_interval([0, 1], [0, 1], [1, 2], method="basic")
    with pytest.raises(ValueError, match="between 0 and 1"):
        auc_interval([0, 1], [0, 1], [1, 2], level=95)


def test_strata_of_groups_keep_the_size_of_each_group():
    labels, subjects = [0, 0, 1, 1, 0, 1], ["a", "b", "c", "d", "e", "c"]
    groups = ["f", "m", "m", "f", "m", "f"]
    subject, strata = subject_strata(labels, subjects, groups)
    assert subject.tolist() == [0, 1, 2, 3, 4, 2]
    # f: control a, cases c (the first of its groups) and d; m: controls b and e.
    assert [stratum.tolist() for stratum in strata] == [[0], [2, 3], [1, 4]]
    with pytest.raises(ValueError, match="one per scan"):
        subject_strata(labels, subjects, groups[:2])


def test_resamples_without_a_value_are_left_out_and_counted():
    # Only x supplies a control: a resample without x has no AUC. Both subjects are in the stratum of cases.
    found = intervals({"auc": auc}, [0, 1, 1], [[0.5, 0.4, 0.6]], ["x", "x", "y"], resamples=4000)["auc"]
    assert found.undefined == pytest.approx(1 / 4, abs=0.03)
    assert intervals({"auc": auc}, [0, 1], [[0.5, 0.6]], ["x", "y"], resamples=10)["auc"].undefined == 0


def test_an_infinite_resample_keeps_its_rank_and_an_infinite_limit_is_no_limit():
    values = np.r_[np.arange(99.0), np.inf]
    assert limits(values, 50, 0.9) == pytest.approx((4.95, 94.05))
    low, high = limits(np.r_[np.arange(80.0), np.full(20, np.inf)], 50, 0.9)
    assert low == pytest.approx(4.95)
    assert np.isnan(high)
