"""Against the example of metafor's manual, against statsmodels, and by simulation."""

import numpy as np
import pytest

from fedbrain.evaluation.meta_analysis import between_variance, random_effects

# Trials of BCG vaccine against tuberculosis, Colditz et al., JAMA 271:698-702 (1994), as in metafor's dat.bcg:
# cases and others among the vaccinated, cases and others among the controls.
BCG = np.array([
    (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
    (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232), (17, 1699, 65, 1600),
    (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
])  # fmt: skip


@pytest.fixture
def trials():
    a, b, c, d = BCG.T
    return np.log(a / (a + b) / (c / (c + d))), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)


def test_the_published_example_of_metafor(trials):
    """rma(yi, vi, data=dat.bcg, test="knha"): tau^2 0.3132, estimate -0.7145, interval -1.1084 to -0.3206, p 0.0019."""
    assert between_variance(*trials) == pytest.approx(0.3132, abs=5e-5)
    found = random_effects(*trials, modified=False)
    assert found.value == pytest.approx(-0.7145, abs=5e-5)
    assert (found.low, found.high) == pytest.approx((-1.1084, -0.3206), abs=1e-4)
    assert found.p == pytest.approx(0.0019, abs=5e-5)
    assert random_effects(*trials) == pytest.approx(found)  # its factor is above 1


def test_given_tau_the_interval_is_that_of_statsmodels(trials, monkeypatch):
    meta_analysis = pytest.importorskip("statsmodels.stats.meta_analysis")
    y, v = trials
    other = meta_analysis.combine_effects(y, v, method_re="iterated", use_t=True)  # tau^2 of Paule and Mandel
    monkeypatch.setattr("fedbrain.evaluation.meta_analysis.between_variance", lambda y, v: other.tau2)
    found = random_effects(y, v, modified=False)
    low, high = other.conf_int(use_t=True)[3]  # random effects, scale of Hartung and Knapp
    assert (found.value, found.low, found.high) == pytest.approx((other.mean_effect_re, low, high), rel=1e-6)


def test_cohorts_that_agree_have_no_tau_and_no_interval_narrower_than_their_subjects_give():
    found = random_effects([0.8, 0.81, 0.79], [0.01, 0.01, 0.01])
    assert found.tau == 0
    assert found.value == pytest.approx(0.8)
    assert found.high - found.value == pytest.approx(4.302653 * 0.1 / np.sqrt(3), rel=1e-5)  # t of 2, by hand
    assert found.prediction_high - found.value == pytest.approx(12.7062 * 0.1 / np.sqrt(3), rel=1e-5)  # t of 1
    narrow = random_effects([0.8, 0.81, 0.79], [0.01, 0.01, 0.01], modified=False)
    assert narrow.high - narrow.value == pytest.approx(4.302653 * 0.01 / np.sqrt(3), rel=1e-5)


def test_so_few_cohorts_that_something_cannot_be_told():
    one, two = random_effects([0.3], [0.1]), random_effects([0.3, 0.5], [0.1, 0.1])
    assert one.value == 0.3
    assert np.isnan(one[1:]).all()
    assert np.isfinite([two.low, two.high, two.p]).all()
    assert np.isnan([two.prediction_low, two.prediction_high]).all()


def test_the_interval_covers_the_mean_and_the_prediction_interval_nearly_a_further_cohort():
    """With few cohorts tau is often found 0, and the prediction interval holds less than it says (docs/evaluation.md)."""
    rng = np.random.default_rng(0)
    runs, tau = 1000, 0.4
    v = np.array([0.02, 0.05, 0.1, 0.2, 0.3])
    covered, predicted = 0, 0
    for _ in range(runs):
        found = random_effects(rng.normal(1.0, np.sqrt(tau**2 + v)), v)
        covered += found.low <= 1.0 <= found.high
        predicted += found.prediction_low <= rng.normal(1.0, tau) <= found.prediction_high
    assert 0.925 < covered / runs < 0.985
    assert 0.87 < predicted / runs < 0.95


@pytest.mark.parametrize(("y", "v"), [([], []), ([1.0], [0.0]), ([np.nan, 1], [1, 1]), ([1.0, 2], [1])])
def test_what_has_no_mean_is_refused(y, v):
    with pytest.raises(ValueError, match="must be"):
        random_effects(y, v)
