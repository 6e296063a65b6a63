"""Telling the cohort from features: found where it is, not found where it is not, never learnt from the person itself."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from fedbrain.evaluation.site_effects import (
    accuracy,
    balanced_accuracy,
    predicted_cohorts,
    site_effects,
    site_projection,
    site_variance,
    variance_shares,
)
from fedbrain.tables import SITE_EFFECTS, SITE_PROJECTION, SITE_VARIANCE

COHORTS = ["north", "south", "east"]


def make_scans(per_cohort=60, *, visits=1, seed=0):
    """Persons of three cohorts with labels and sides, ``visits`` scans each."""
    generator = np.random.default_rng(seed)
    cohort = np.repeat(COHORTS, per_cohort)
    table = pd.DataFrame({"cohort": cohort, "person": [f"{name}/{i}" for i, name in enumerate(cohort)]})
    table["label"] = generator.integers(0, 2, len(table))
    table["split"] = generator.choice(["train", "validation", "test"], len(table), p=[0.6, 0.15, 0.25])
    return table.loc[table.index.repeat(visits)].reset_index(drop=True)


def shifted(scans, *, by, channels=20, seed=1):
    """Noise, a channel of its own moved by ``by`` in each cohort."""
    values = np.random.default_rng(seed).normal(size=(len(scans), channels))
    values[np.arange(len(scans)), number(scans)] += by
    return values


def measured(features, scans, **options):
    table = site_effects(features, scans, cohorts=COHORTS, resamples=300, **options)
    assert list(table.columns) == list(SITE_EFFECTS)
    return table


def balanced(table, **chosen):
    for column, value in chosen.items():
        table = table[table[column] == value]
    (row,) = table[table["metric"] == "balanced_accuracy"].to_dict("records")
    return row


def test_a_cohort_that_shows_is_found_and_noise_is_not():
    scans = make_scans()
    table = measured({("mean", "none"): shifted(scans, by=4), ("spread", "none"): shifted(scans, by=0)}, scans)
    clear, noise = (balanced(table, features=name, label="all") for name in ("mean", "spread"))
    assert clear["value"] > 0.9
    assert clear["low"] > clear["chance"] == pytest.approx(1 / 3)
    assert noise["low"] < 1 / 3 < noise["high"]
    assert clear["scans"] == clear["subjects"] == 180
    aucs = table[(table["metric"] == "auc") & (table["features"] == "mean") & (table["label"] == "all")]
    assert list(aucs["cohort"]) == COHORTS
    assert (aucs["value"] > 0.95).all()


def test_chance_is_chance_over_many_studies():
    values = []
    for seed in range(20):
        scans = make_scans(20, seed=seed)
        probabilities = predicted_cohorts(
            shifted(scans, by=0, channels=100, seed=seed), number(scans), scans["person"], folds=5
        )
        values.append(balanced_accuracy(number(scans), probabilities.argmax(1)))
    assert abs(np.mean(values) - 1 / 3) < 4 * np.std(values, ddof=1) / np.sqrt(20)


def number(scans):
    return scans["cohort"].map({name: k for k, name in enumerate(COHORTS)}).to_numpy()


def test_a_person_is_not_recognised_by_another_scan_of_it():
    scans = make_scans(20, visits=3)
    person = np.random.default_rng(4).normal(size=(60, 200)).repeat(3, axis=0)  # a face, and nothing of the cohort
    row = balanced(measured({("mean", "none"): person}, scans), label="all")
    assert row["value"] < 0.45  # from the scans of the same person it would be 1
    assert (row["scans"], row["subjects"]) == (180, 60)


def test_disease_tells_cohorts_apart_that_differ_in_prevalence_and_controls_do_not():
    generator = np.random.default_rng(5)
    scans = make_scans(80)
    scans["label"] = generator.random(len(scans)) < scans["cohort"].map({"north": 0.1, "south": 0.5, "east": 0.9})
    values = generator.normal(size=(len(scans), 10)) + 2 * scans["label"].to_numpy()[:, None]
    table = measured({("mean", "none"): values}, scans.astype({"label": int}))
    everybody, controls = (balanced(table, label=label) for label in ("all", "controls"))
    assert everybody["low"] > 1 / 3
    assert controls["low"] < 1 / 3
    assert controls["scans"] == (scans["label"] == 0).sum()


def test_harmonized_features_are_measured_on_scans_that_had_no_part_in_the_fit():
    scans = make_scans()
    before = shifted(scans, by=4)
    table = measured(
        {("mean", "none"): before, ("mean", "combat"): shifted(scans, by=0), ("spread", "none"): before}, scans
    )
    held_out = int((scans["split"] != "train").sum())
    found = {(r["features"], r["harmonization"], r["side"]) for r in table.to_dict("records")}
    assert found == {
        ("mean", "none", "all"),
        ("mean", "none", "held out"),
        ("mean", "combat", "held out"),
        ("spread", "none", "all"),
    }
    assert balanced(table, harmonization="combat", label="all")["scans"] == held_out
    assert balanced(table, harmonization="none", side="held out", label="all")["value"] > 0.8


def test_what_cannot_be_measured_says_why():
    scans = make_scans(5)
    values = shifted(scans, by=4)
    values[3, 1] = np.nan
    row = balanced(measured({("quality", "none"): values}, scans), label="all")
    assert row["note"] == "1 feature(s) missing of some scans left out"
    values[3] = np.nan
    row = balanced(measured({("quality", "none"): values}, scans), label="all")
    assert pd.isna(row["value"])
    assert "no feature is there for every scan" in row["note"]
    few = scans[(scans["cohort"] != "south") | (scans.index == 5)].reset_index(drop=True)
    row = balanced(measured({("mean", "none"): shifted(few, by=4)}, few), label="all")
    assert row["note"] == "south: fewer than two persons, left out"
    assert row["chance"] == 0.5
    many = make_scans(40)
    row = balanced(measured({("mean", "none"): shifted(many, by=1000)}, many), label="all")
    assert row["low"] == row["high"] == 1
    assert "no width and cannot show the uncertainty" in row["note"]
    one = scans[scans["cohort"] == "east"].reset_index(drop=True)
    row = balanced(measured({("mean", "none"): shifted(one, by=4)}, one), label="all")
    assert "fewer than two cohorts to tell apart" in row["note"]


def test_folds_follow_the_smallest_cohort():
    scans = make_scans(12)
    scans = scans[(scans["cohort"] != "east") | (scans.index < 27)].reset_index(drop=True)  # three of the east
    assert balanced(measured({("mean", "none"): shifted(scans, by=4)}, scans), label="all")["folds"] == 3


def test_accuracies_agree_with_scikit_learn_and_weights_are_copies():
    generator = np.random.default_rng(7)
    cohort, predicted = generator.integers(0, 3, 50), generator.integers(0, 3, 50)
    copies = generator.integers(0, 4, (50, 6))
    many = balanced_accuracy(cohort, predicted, copies), accuracy(cohort, predicted, copies)
    for k in range(6):
        drawn = np.repeat(np.arange(50), copies[:, k])
        assert many[0][k] == pytest.approx(balanced_accuracy_score(cohort[drawn], predicted[drawn]))
        assert many[1][k] == pytest.approx(np.mean(cohort[drawn] == predicted[drawn]))


def test_auc_is_that_of_the_cross_validated_probability():
    scans = make_scans()
    values = shifted(scans, by=1)
    table = measured({("mean", "none"): values}, scans, seed=3)
    probabilities = predicted_cohorts(values, number(scans), scans["person"].to_numpy(), folds=5, seed=3)
    row = table[(table["cohort"] == "east") & (table["label"] == "all")].iloc[0]
    assert row["value"] == pytest.approx(roc_auc_score(scans["cohort"] == "east", probabilities[:, 2]))


def test_shares_of_variance_by_hand_and_against_an_analysis_of_variance():
    values = np.array([[1.0], [3.0], [5.0], [7.0]])
    eta, omega = variance_shares(values, np.array(["a", "a", "b", "b"]))
    assert eta[0] == pytest.approx(16 / 20)  # between 2 * 2 * 2^2, total 9 + 1 + 1 + 9
    assert omega[0] == pytest.approx((16 - 2) / (20 + 2))  # within 4 / 2
    scans = make_scans()
    values = shifted(scans, by=0.3)
    eta, omega = variance_shares(values, scans["cohort"].to_numpy(str))
    f = f_oneway(*(values[scans["cohort"] == name] for name in COHORTS)).statistic
    assert np.allclose(eta, 2 * f / (2 * f + 177))
    assert np.allclose(omega, 2 * (f - 1) / (2 * (f - 1) + 180))
    assert abs(omega[3:].mean()) < 0.01 < eta[3:].mean()  # by chance eta is (K - 1) / (N - 1), omega 0
    assert np.isnan(variance_shares(np.ones((6, 1)), np.repeat(["a", "b"], 3))[0]).all()
    assert np.isnan(variance_shares(np.eye(2), np.array(["a", "b"]))[1]).all()


def test_the_variance_table_takes_a_persons_first_scan():
    scans = make_scans(10, visits=2)
    values = shifted(scans, by=2)
    once = np.arange(0, len(scans), 2)
    table = site_variance({("mean", "none"): values}, scans)
    assert list(table.columns) == list(SITE_VARIANCE)
    mine = table[table["label"] == "all"]
    assert np.allclose(mine["eta_squared"], variance_shares(values[once], scans["cohort"].to_numpy(str)[once])[0])
    assert list(mine["feature"]) == list(range(20))


def test_the_projection_keeps_one_pair_of_directions_for_all_harmonizations():
    scans = make_scans(30)
    before = shifted(scans, by=0, channels=5)
    before[:, 1] = 3 * before[:, 0] + 0.1 * before[:, 1]
    after = before + 1.0
    table = site_projection({"none": before, "combat": after}, scans)
    assert list(table.columns) == list(SITE_PROJECTION)
    plain, moved = (table[table["harmonization"] == name].reset_index(drop=True) for name in ("none", "combat"))
    standard = (before - before.mean(0)) / before.std(0)
    variances = np.linalg.eigvalsh(np.cov(standard.T, bias=True))[::-1]
    assert plain["first"].var(ddof=0) == pytest.approx(variances[0])
    assert plain["first_share"].iloc[0] == pytest.approx(variances[0] / 5)
    assert np.ptp(moved["first"] - plain["first"]) < 1e-9  # a shift of all features is a shift of all points
    assert (moved["first"] - plain["first"]).iloc[0] != pytest.approx(0)


def test_an_external_cohort_is_told_on_all_scans_and_not_where_its_adjustment_was_found():
    scans = make_scans()
    scans.loc[scans["cohort"] == "east", "split"] = "test"
    values = shifted(scans, by=3)
    table = measured({("mean", "none"): values, ("mean", "combat"): values}, scans)
    assert set(table.query("side == 'all'")["cohort"]) == {"all", *COHORTS}
    held_out = table[table["side"] == "held out"]
    assert set(held_out["cohort"]) == {"all", "north", "south"}
    assert held_out["note"].str.contains("east: external, adjusted by its test scans themselves, left out").all()
    outside = scans["cohort"] != "east"
    counted = held_out[held_out["label"] == "all"].iloc[0]["subjects"]
    assert counted == scans[outside & (scans["split"] != "train")]["person"].nunique()
