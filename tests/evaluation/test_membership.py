import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

from fedbrain.evaluation.bootstrap import intervals
from fedbrain.evaluation.membership import (
    MANY,
    attack_curve,
    least_fpr,
    likelihood_ratio,
    loss_score,
    tpr_at_fpr,
)
from fedbrain.evaluation.metrics import auc


def test_the_loss_score_is_the_log_probability_of_the_own_label():
    p = np.array([0.1, 0.5, 0.99])
    assert loss_score(np.log(p / (1 - p))) == pytest.approx(np.log(p))
    assert loss_score([-1e4, 0, 1e4]) == pytest.approx([-1e4, -np.log(2), 0])  # nothing overflows


def test_the_ratio_by_hand():
    # One scan: in at 2 and 4, out at 0 and 2; both variances are 2, and 3 is 0 from one mean and 2 from the other.
    shadows, inside = np.array([[2.0], [4], [0], [2]]), np.array([[True], [True], [False], [False]])
    assert likelihood_ratio([3.0], shadows, inside) == pytest.approx([2**2 / (2 * 2)])
    assert likelihood_ratio([2.0], shadows, inside) == pytest.approx([0])


@pytest.mark.parametrize("models", [8, MANY])
def test_the_ratio_is_that_of_two_normal_densities(models):
    rng = np.random.default_rng(0)
    inside = rng.permuted(np.arange(models)[:, None] % 2 == np.zeros(5, int), axis=0)
    shadows, logits = rng.normal(2 * inside, 1 + inside), rng.normal(1, 2, 5)
    shadows[0, 0] = np.nan
    expected = []
    for chosen in (inside, ~inside):
        own = [shadows[chosen[:, n] & ~np.isnan(shadows[:, n]), n] for n in range(5)]
        within = np.concatenate([values - values.mean() for values in own])
        fixed = np.sqrt((within**2).sum() / (len(within) - 5))
        spread = [fixed] * 5 if models < MANY else [values.std(ddof=1) for values in own]
        expected.append([norm.logpdf(x, values.mean(), s) for x, values, s in zip(logits, own, spread)])
    assert likelihood_ratio(logits, shadows, inside) == pytest.approx(np.subtract(*expected))


def test_shadow_models_that_agree_or_are_missing_make_no_number_that_looks_like_a_result():
    inside = np.array([[True, True], [True, True], [False, True], [False, True]])
    found = likelihood_ratio([1.0, 1.0], np.array([[1.0, 1], [1, 1], [0, 1], [0, 1]]), inside)
    assert 0 < found[0] < np.inf
    assert np.isnan(found[1])
    with pytest.raises(ValueError, match="must be"):
        likelihood_ratio([1.0], np.zeros((4, 2)), inside)


def test_true_positive_rate_by_hand():
    members, scores = [1, 1, 1, 1, 0, 0, 0, 0], [9, 7, 5, 3, 8, 4, 2, 1]
    rates = {0: 1 / 4, 0.24: 1 / 4, 0.25: 3 / 4, 0.5: 1, 1: 1}
    assert {rate: tpr_at_fpr(members, scores, rate=rate) for rate in rates} == rates
    assert tpr_at_fpr([1, 0], [1, 1], rate=0.5) == 0  # a tie calls both
    assert np.isnan(tpr_at_fpr([1, 1], [1, 2], rate=0.5))
    assert (least_fpr(4), np.isnan(least_fpr(0))) == (0.25, True)


def test_true_positive_rate_is_a_point_of_the_roc_curve_and_weights_are_copies():
    rng = np.random.default_rng(1)
    members = rng.integers(0, 2, 300)
    scores = np.round(rng.normal(0.7 * members), 1)  # with ties
    false, true, _ = roc_curve(members, scores, drop_intermediate=False)
    counts = rng.integers(0, 3, (300, 4))
    for rate in (0.01, 0.1, 1 / 3):
        assert tpr_at_fpr(members, scores, rate=rate) == pytest.approx(true[false <= rate].max())
        copies = [tpr_at_fpr(np.repeat(members, c), np.repeat(scores, c), rate=rate) for c in counts.T]
        assert tpr_at_fpr(members, scores, counts, rate=rate) == pytest.approx(copies)


def test_the_attack_curve_has_the_points_of_the_roc_curve():
    rng = np.random.default_rng(2)
    members = rng.integers(0, 2, 40)
    scores = np.round(rng.normal(members), 1)
    false, true, _ = roc_curve(members, scores, drop_intermediate=False)
    found = attack_curve(members, scores)
    assert found[0] == pytest.approx(false)
    assert found[1] == pytest.approx(true)
    assert np.trapezoid(found[1], found[0]) == pytest.approx(auc(members, scores))
    assert [len(part) for part in attack_curve([1, 1], [0, 1])] == [0, 0]


def trained(x, y, inside, penalty):
    """A logistic regression on the scans ``inside``: the logit of each scan's own label."""
    model = LogisticRegression(C=penalty, max_iter=500).fit(x[inside], y[inside])
    return model.decision_function(x) * np.where(y == 1, 1, -1)


def both_attacks(rng, *, penalty, effect, n=120, features=60, models=16, elsewhere=False):
    """A target model trained on half of n scans (or on other scans of the same kind), and the AUC of each attack on it."""
    y = np.arange(n) % 2
    x = rng.normal(effect * (2 * y - 1)[:, None] / np.sqrt(features), 1, (n, features))
    member = rng.permutation(n) < n // 2
    halves = np.array([rng.permutation(n) < n // 2 for _ in range(models // 2)])
    halves = np.concatenate([halves, ~halves])
    shadows = np.array([trained(x, y, half, penalty) for half in halves])
    if elsewhere:
        other_x = rng.normal(effect * (2 * y - 1)[:, None] / np.sqrt(features), 1, (n, features))
        own = LogisticRegression(C=penalty, max_iter=500).fit(other_x[: n // 2], y[: n // 2])
        logits = own.decision_function(x) * np.where(y == 1, 1, -1)
    else:
        logits = trained(x, y, member, penalty)
    return member.astype(int), {"loss": loss_score(logits), "lira": likelihood_ratio(logits, shadows, halves)}


def test_a_model_that_has_memorised_random_labels_is_told_by_both_attacks():
    # 60 scans and 60 features fit any labels. Half of the others fit them better still by luck, so the loss alone stays at 3/4.
    member, scores = both_attacks(np.random.default_rng(3), penalty=1e3, effect=0)
    for attack, least in (("loss", 0.65), ("lira", 0.8)):
        assert roc_auc_score(member, scores[attack]) > least
        found = intervals({"auc": auc}, member, [scores[attack]], np.arange(120), resamples=500)["auc"]
        assert found.low > 0.55


def test_the_ratio_finds_more_than_the_loss_where_scans_differ_in_how_hard_they_are():
    # Labels can be learned from the features, so a low loss may be an easy scan that the model has never seen.
    pairs = []
    for seed in range(4):
        member, scores = both_attacks(np.random.default_rng(seed), penalty=1, effect=2.0)
        pairs.append([roc_auc_score(member, scores[attack]) for attack in ("loss", "lira")])
    loss, ratio = np.mean(pairs, axis=0)
    assert 0.55 < loss < ratio - 0.05


def test_a_model_of_other_scans_tells_nothing_and_the_interval_covers_one_half():
    values, covered = {"loss": [], "lira": []}, {"loss": 0, "lira": 0}
    rng = np.random.default_rng(5)
    for _ in range(60):
        member, scores = both_attacks(rng, penalty=1, effect=1.0, n=60, features=10, models=4, elsewhere=True)
        for attack, own in scores.items():
            found = intervals({"auc": auc}, member, [own], np.arange(60), resamples=300)["auc"]
            values[attack].append(found.value)
            covered[attack] += found.low <= 0.5 <= found.high
    for attack in values:
        assert np.mean(values[attack]) == pytest.approx(
            0.5, abs=4 * 0.075 / np.sqrt(60)
        )  # sd of an AUC of 30 and 30: 0.075
        assert covered[attack] >= 51  # of 60 at 95 %: binomial, fewer with a chance below 0.1 %
