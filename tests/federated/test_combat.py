"""ComBat from sums against ComBat from pooled data: written out from the paper below, and the published package."""

import sys

import numpy as np
import pandas as pd
import pytest
from neuroCombat import neuroCombat

from fedbrain.federated.combat import CONSTANT, SiteSums, adjustment, affine, pooled_estimates, site_sums

SIZES = {"north": 31, "south": 3, "east": 12, "west": 50}


def make_data(sizes=None, *, features=40, covariates=2, seed=0):
    """Features (n, G) and covariates (n, P) by client, with offsets and scales by client and feature."""
    generator = np.random.default_rng(seed)
    slopes = generator.normal(size=(covariates, features)) * 0.3
    level = 5 * generator.normal(size=features)
    data = {}
    for client, n in (sizes or SIZES).items():
        x = np.column_stack([generator.normal(1 + len(data), 1, n), generator.integers(0, 2, n)])[:, :covariates]
        offset, scale = generator.normal(0.5, 1, features), generator.gamma(8, 1 / 8, features)
        y = level + x @ slopes + offset + scale * generator.normal(size=(n, features))
        data[client] = (y, x)
    return data


def from_sums(data):
    """Harmonized features by client, as clients and server would compute them."""
    sums = {client: site_sums(y, x) for client, (y, x) in data.items()}
    pooled = pooled_estimates(list(sums.values()))
    result = {}
    for client, (y, x) in data.items():
        gain, shift = affine(pooled, adjustment(sums[client], pooled), x)
        result[client] = gain * y + shift
    return result


def from_pooled_data(data):
    """The same from all rows at once, in the words of Johnson et al.: dense design, standardized data, one feature at a time."""
    y = np.concatenate([part for part, _ in data.values()])
    x = np.concatenate([part for _, part in data.values()])
    batch = np.repeat(np.arange(len(data)), [len(part) for part, _ in data.values()])
    design = np.column_stack([np.eye(len(data))[batch], x])
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    grand_mean = np.mean(np.eye(len(data))[batch] @ coefficients[: len(data)], axis=0)
    sigma = np.sqrt(np.mean((y - design @ coefficients) ** 2, axis=0))
    kept = grand_mean + x @ coefficients[len(data) :]
    z = (y - kept) / sigma
    result = {}
    for i, client in enumerate(data):
        own = z[batch == i]
        n = len(own)
        gamma_hat, delta_hat = own.mean(0), own.var(0, ddof=1)
        gamma_bar, tau_squared = gamma_hat.mean(), gamma_hat.var(ddof=1)
        mean, variance = delta_hat.mean(), delta_hat.var(ddof=1)
        a, b = (2 * variance + mean**2) / variance, (mean * variance + mean**3) / variance
        harmonized = np.empty_like(own)
        for g in range(own.shape[1]):
            gamma, delta = gamma_hat[g], delta_hat[g]
            moved = 1.0
            while moved > 1e-13:
                last = gamma, delta
                gamma = (n * tau_squared * gamma_hat[g] + delta * gamma_bar) / (n * tau_squared + delta)
                delta = (b + 0.5 * np.sum((own[:, g] - gamma) ** 2)) / (n / 2 + a - 1)
                moved = abs(gamma - last[0]) + abs(delta - last[1])
            harmonized[:, g] = sigma[g] * (own[:, g] - gamma) / np.sqrt(delta) + kept[batch == i, g]
        result[client] = harmonized
    return result


@pytest.mark.parametrize("covariates", [0, 1, 2])
def test_sums_give_what_pooled_data_give(covariates):
    data = make_data(covariates=covariates, features=12)
    ours, theirs = from_sums(data), from_pooled_data(data)
    for client in data:
        assert np.abs(ours[client] - theirs[client]).max() < 1e-8


def test_the_published_package_agrees(monkeypatch, capsys):
    # It stops at a change of 1e-4; for a comparison it goes on until nothing moves.
    monkeypatch.setattr(sys.modules["neuroCombat.neuroCombat"].it_sol, "__defaults__", (1e-13,))
    data = make_data()
    rows = np.concatenate([y for y, _ in data.values()])
    x = np.concatenate([part for _, part in data.values()]).astype(np.float32)  # as the package takes covariates
    table = pd.DataFrame({"batch": np.repeat(list(data), [len(y) for y, _ in data.values()]), "age": x[:, 0]})
    table["sex"] = np.where(x[:, 1] > 0, "M", "F")
    theirs = neuroCombat(rows.T, table, "batch", categorical_cols=["sex"], continuous_cols=["age"])["data"].T
    single = {client: (y, part.astype(np.float32)) for client, (y, part) in data.items()}
    assert np.abs(np.concatenate(list(from_sums(single).values())) - theirs).max() < 1e-8


def test_a_shift_and_a_scale_of_a_client_are_taken_out_and_the_covariates_effect_stays():
    generator = np.random.default_rng(3)
    n, features = 400, 60
    effect = generator.normal(size=features)
    data = {}
    for client, (shift, scale) in {"a": (0, 1), "b": (4, 2), "c": (-3, 0.5)}.items():
        x = generator.normal(size=(n, 1)) + (client == "b")  # b's subjects are older
        data[client] = (10 + x * effect + shift + scale * generator.normal(size=(n, features)), x)
    after = from_sums(data)
    residuals = {client: after[client] - x * effect for client, (_, x) in data.items()}
    means = np.array([part.mean(0) for part in residuals.values()])
    spreads = np.array([part.std(0) for part in residuals.values()])
    assert np.ptp(means, axis=0).mean() < 0.15  # 7 before
    assert np.ptp(spreads, axis=0).mean() < 0.15  # 1.5 before
    slopes = [np.polyfit(data[client][1][:, 0], after[client], 1)[0] for client in data]
    assert np.abs(np.mean(slopes, axis=0) - effect).max() < 0.15


def test_fewer_subjects_are_shrunk_further_towards_the_clients_other_features():
    data = make_data({"many": 300, "other": 300, "few": 4}, covariates=0, features=200)
    sums = {client: site_sums(*rows) for client, rows in data.items()}
    pooled = pooled_estimates(list(sums.values()))
    kept = {}
    for client, own in sums.items():
        raw = (own.feature_mean - pooled.mean) / np.sqrt(pooled.variance)
        kept[client] = np.polyfit(raw, adjustment(own, pooled).location, 1)[0]
    assert 0.97 < kept["many"] < 1.001
    assert kept["few"] < kept["many"] - 0.05


def test_a_constant_feature_is_left_alone_and_takes_no_part_in_the_prior():
    data = make_data(features=20)
    without = from_sums(data)
    with_constant = {client: (np.column_stack([y, np.full(len(y), 0.1)]), x) for client, (y, x) in data.items()}
    after = from_sums(with_constant)
    for client in data:
        assert np.array_equal(after[client][:, -1], with_constant[client][0][:, -1])
        assert np.allclose(after[client][:, :-1], without[client], atol=1e-12)


def test_a_feature_that_is_constant_at_one_client_only_stays_finite():
    data = make_data(features=20)
    data["east"][0][:, 3] = 2.0
    assert all(np.isfinite(part).all() for part in from_sums(data).values())


def test_order_and_names_of_clients_mean_nothing():
    data = make_data()
    turned = from_sums(dict(reversed(data.items())))
    for client, part in from_sums(data).items():
        assert np.allclose(part, turned[client], atol=1e-11)


def test_a_client_without_part_in_the_fit_is_brought_to_the_others():
    data = make_data(dict.fromkeys("abc", 200), covariates=0, features=50)
    pooled = pooled_estimates([site_sums(*data[client]) for client in "ab"])
    own = site_sums(*data["c"])
    gain, shift = affine(pooled, adjustment(own, pooled), data["c"][1])
    before = np.abs(data["c"][0].mean(0) - pooled.mean) / np.sqrt(pooled.variance)
    after = np.abs((gain * data["c"][0] + shift).mean(0) - pooled.mean) / np.sqrt(pooled.variance)
    assert before.mean() > 0.5
    assert after.max() < 0.05


def test_what_travels_is_counted_by_hand():
    y, x = make_data(features=5)["east"]
    sums = site_sums(y, x)
    assert (
        sums.numbers == 1 + 5 + 2 + 5 + 3 + 10
    )  # n, means of y and x, squares of y, products of x, products of x and y
    assert pooled_estimates([sums]).numbers == 5 + 10 + 5  # level, slopes, variance


def test_refusals():
    y, x = make_data(features=5)["east"]
    with pytest.raises(ValueError, match="3 or more"):
        site_sums(y[:2], x[:2])
    with pytest.raises(ValueError, match="finite"):
        site_sums(np.where(y == y.max(), np.nan, y), x)
    for wrong in (np.column_stack([x[:, 0], np.ones(len(x))]), np.column_stack([x[:, 0], 2 * x[:, 0] - 1])):
        with pytest.raises(ValueError, match="do not vary within the clients, or one follows"):
            pooled_estimates([site_sums(y, wrong)])
    one = site_sums(y[:, :1], x)
    with pytest.raises(ValueError, match="fewer than two features"):
        adjustment(one, pooled_estimates([one]))
    noise = site_sums(y[:, :2] * [1, CONSTANT / 100] + [0, 1000], x)
    with pytest.raises(ValueError, match="fewer than two features"):
        adjustment(noise, pooled_estimates([noise]))


def totals(parts):
    """One client's sums that have the same totals as those of several: all that secure aggregation would show."""
    count = sum(part.count for part in parts)
    mean, covariate_mean = (
        sum(part.count * getattr(part, name) for part in parts) / count for name in ("feature_mean", "covariate_mean")
    )
    names = ("feature_squares", "covariate_products", "cross_products")
    squares, products, cross = (sum(getattr(part, name) for part in parts) for name in names)
    return SiteSums(count, mean, covariate_mean, squares, products, cross)


def test_the_pooled_estimates_follow_from_totals_alone():
    """Also which features are constant: here two clients have large means that cancel out in the pooled one."""
    data = make_data(features=20)
    (y, _), (z, _), *_ = data.values()
    y[:, 3] += 1e10 / len(y)
    z[:, 3] -= 1e10 / len(z)
    parts = [site_sums(*rows) for rows in data.values()]
    apart, together = pooled_estimates(parts), pooled_estimates([totals(parts)])
    for name in ("mean", "slopes", "variance"):
        np.testing.assert_allclose(getattr(apart, name), getattr(together, name), rtol=1e-6, atol=1e-9)
    assert (apart.variance > 0).all()
