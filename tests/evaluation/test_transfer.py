"""Cohorts that a model never saw: each number against the function that it must agree with, and what must not be mixed up."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from fedbrain.errors import StudyError
from fedbrain.evaluation.bootstrap import auc_interval
from fedbrain.evaluation.comparison import delong_covariance, delong_test, holm
from fedbrain.evaluation.meta_analysis import random_effects
from fedbrain.evaluation.metrics import auc
from fedbrain.evaluation.transfer import ROWS, transfer
from fedbrain.tables import PREDICTIONS, SPLITS, TRANSFER, read_table, write_table

CLIENTS = ["north", "south", "west", "away"]
CELL, OTHER = ("linear", "frozen", "fedavg"), ("linear", "frozen", "fedce")
SIZE = 60


@pytest.fixture(scope="module")
def splits():
    rows = [
        (cohort, f"{n:03d}", f"{cohort}/{n:03d}", n % 2, "test" if cohort == "away" or n < 24 else "train")
        for cohort in CLIENTS
        for n in range(SIZE)
    ]
    return pd.DataFrame(rows, columns=list(SPLITS)).astype(SPLITS)


def scored(splits, shift, *, seed, sides=("test",)):
    """Scores of the scans of some sides; a case scores ``shift`` of its cohort above a control."""
    chosen = splits[splits["split"].isin(sides)]
    noise = np.random.default_rng(seed).normal(size=len(chosen))
    moved = chosen["cohort"].map(shift).to_numpy(float) * chosen["label"].to_numpy(float)
    return chosen[["cohort", "subject", "label"]].assign(session=pd.NA, score=expit(noise + moved)).astype(PREDICTIONS)


@pytest.fixture(scope="module")
def runs(splits):
    """Whoever has not seen south takes its cases for controls."""
    knows, knows_not = dict.fromkeys(CLIENTS, 1.5), dict.fromkeys(CLIENTS, 1.0) | {"south": -1.0}
    predictions = {
        cell: {s: scored(splits, knows, seed=s + 10 * k) for s in (0, 1)} for k, cell in enumerate([CELL, OTHER])
    }
    without = {}
    for cohort in ("north", "south", "west"):
        both = {s: scored(splits, knows_not, seed=s + 50, sides=("test", "train")) for s in (0, 1)}
        kept = (splits["cohort"] == cohort) | (
            splits["split"] == "test"
        )  # of the others their test scans, as the runs write
        without[cohort] = {CELL: {s: frame[kept.to_numpy()] for s, frame in both.items()}}
    return predictions, without


@pytest.fixture(scope="module")
def table(runs, splits):
    predictions, without = runs
    return transfer(predictions, without, splits, clients=CLIENTS, external=["away"], resamples=400)


def row(table, **chosen):
    for name, value in chosen.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def of(frame, cohort, subjects=None):
    mine = frame[frame["cohort"] == cohort]
    mine = mine if subjects is None else mine[mine["subject"].isin(subjects)]
    return mine["label"].to_numpy(int), mine["score"].to_numpy(float), mine["subject"].to_numpy(str)


def test_a_row_for_every_cohort_model_and_metric_and_the_table_survives_the_disk(table, tmp_path):
    cohorts = table[(table["cohort"] != "mean") & (table["kind"] == "left out")]
    assert set(cohorts["aggregation"]) == {"fedavg"}
    assert len(cohorts) == 3 * (3 * len(ROWS) + 3)
    external = table[table["kind"] == "external"]
    assert len(external) == 2 * len(ROWS)
    assert set(external["aggregation"]) == {"fedavg", "fedce"}
    write_table(table, tmp_path / "transfer.tsv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "transfer.tsv", TRANSFER), table)


def test_unseen_and_seen_are_measured_on_the_same_test_subjects(table, runs):
    predictions, without = runs
    tested = [f"{n:03d}" for n in range(24)]
    for model, by_seed in (("unseen", without["south"][CELL]), ("seen", predictions[CELL])):
        found = row(table, cohort="south", tested="test", model=model, metric="auc")
        expected = np.mean([auc(*of(by_seed[s], "south", tested)[:2]) for s in (0, 1)])
        assert found["value"] == pytest.approx(expected)
        assert found[["subjects", "positives", "negatives", "seeds"]].tolist() == [24, 12, 12, 2]
    assert row(table, cohort="south", tested="test", model="unseen", metric="auc")["value"] < 0.4
    assert row(table, cohort="south", tested="test", model="seen", metric="auc")["value"] > 0.7


def test_all_subjects_of_the_cohort_are_tested_by_the_model_that_knows_none(table, runs):
    found = row(table, cohort="west", tested="all", model="unseen", metric="auc")
    frames = [runs[1]["west"][CELL][s] for s in (0, 1)]
    assert found["subjects"] == SIZE
    assert found["value"] == pytest.approx(np.mean([auc(*of(frame, "west")[:2]) for frame in frames]))
    one = transfer(
        {CELL: {0: runs[0][CELL][0]}}, {"west": {CELL: {0: frames[0]}}}, splits_of(runs), clients=CLIENTS, resamples=400
    )
    found = row(one, cohort="west", tested="all", model="unseen", metric="auc")
    labels, scores, subjects = of(frames[0], "west")
    persons = [f"west/{subject}" for subject in subjects]
    assert tuple(found[["value", "low", "high"]]) == pytest.approx(auc_interval(labels, scores, persons, resamples=400))


def splits_of(runs):
    """The table SPLITS from what was predicted: test subjects, and one training subject of each."""
    frame = runs[0][CELL][0][["cohort", "subject", "label"]].assign(split="test")
    more = pd.DataFrame({"cohort": ["north", "south", "west"], "subject": "t", "label": 0, "split": "train"})
    frame = pd.concat([frame, more], ignore_index=True)
    return frame.assign(person=frame["cohort"] + "/" + frame["subject"])[list(SPLITS)].astype(SPLITS)


def test_the_difference_is_paired(table, runs, splits):
    predictions, without = runs
    tested = [f"{n:03d}" for n in range(24)]
    one = transfer(
        {CELL: {0: predictions[CELL][0]}},
        {"south": {CELL: {0: without["south"][CELL][0]}}},
        splits,
        clients=CLIENTS,
        resamples=400,
    )
    found = row(one, cohort="south", model="difference", metric="auc")
    labels, unseen, _ = of(without["south"][CELL][0], "south", tested)
    _, seen, _ = of(predictions[CELL][0], "south", tested)
    expected = delong_test(labels, unseen, seen)
    assert found["value"] == pytest.approx(expected.auc_a - expected.auc_b)
    assert found["p"] == found["p_holm"] == pytest.approx(expected.p)
    assert found["low"] < found["value"] < found["high"] < 0
    pairs = table[(table["model"] == "difference") & (table["cohort"] != "mean") & (table["metric"] == "auc")]
    assert pairs["p_holm"].to_numpy(float) == pytest.approx(holm(pairs["p"].to_numpy(float)))
    assert len(pairs) == 3


def test_means_over_cohorts_are_random_effects_of_auc_on_the_logit_scale(table, runs):
    frames = {cohort: runs[1][cohort][CELL] for cohort in ("north", "south", "west")}
    y, v = [], []
    for cohort, by_seed in frames.items():
        labels, _, subjects = of(by_seed[0], cohort)
        aucs, covariance = delong_covariance(labels, [of(by_seed[s], cohort)[1] for s in (0, 1)], subjects)
        y.append(logit(aucs.mean()))
        v.append(covariance.mean() / (aucs.mean() * (1 - aucs.mean())) ** 2)
    expected = random_effects(y, v)
    found = row(table, cohort="mean", tested="all", model="unseen")
    assert (found["value"], found["low"], found["high"]) == pytest.approx(tuple(expit(expected[:3])))
    assert (found["prediction_low"], found["prediction_high"]) == pytest.approx(tuple(expit(expected[4:6])))
    assert found["tau"] == pytest.approx(expected.tau)
    assert found["tau"] > 0.3  # south is the other way round
    assert found["cohorts"] == 3
    assert "3 cohorts only" in found["note"]
    difference = row(table, cohort="mean", model="difference")
    values = table[(table["model"] == "difference") & (table["metric"] == "auc") & (table["cohort"] != "mean")]["value"]
    assert values.min() < difference["value"] < values.max()
    assert difference["low"] < difference["value"] < difference["high"]
    assert 0 < difference["p"] < 1


def test_an_external_cohort_has_no_model_that_saw_it(table, runs):
    mine = table[table["cohort"] == "away"]
    assert set(mine["model"]) == {"unseen"}
    assert set(mine["tested"]) == {"test"}
    found = row(mine, aggregation="fedce", metric="auc")
    assert found["value"] == pytest.approx(np.mean([auc(*of(runs[0][OTHER][s], "away")[:2]) for s in (0, 1)]))
    assert found["subjects"] == SIZE


def test_where_an_auc_has_no_variance_there_is_no_mean(runs, splits):
    predictions, without = runs
    perfect = {s: frame.assign(score=frame["label"].astype("Float64")) for s, frame in without["north"][CELL].items()}
    table = transfer(predictions, without | {"north": {CELL: perfect}}, splits, clients=CLIENTS, resamples=100)
    found = row(table, cohort="mean", tested="all", model="unseen")
    assert pd.isna(found["value"])
    assert found["note"].startswith("no mean; north: no AUC, or none with a variance")
    widthless = row(table, cohort="north", tested="all", model="unseen", metric="auc")
    assert (widthless["value"], widthless["low"]) == (1, 1)
    assert "no width" in widthless["note"]
    assert row(table, cohort="north", tested="all", model="unseen", metric="auc_delong")["low"] < 1


def test_persons_whom_another_cohort_trains_on_are_told(runs, splits):
    tied = splits.copy()
    tied.loc[(tied["cohort"] == "west") & (tied["subject"] == "040"), "person"] = "north/041"
    predictions, without = runs
    left = {
        s: frame[~((frame["cohort"] == "west") & (frame["subject"] == "040"))]
        for s, frame in without["west"][CELL].items()
    }
    table = transfer(predictions, {"west": {CELL: left}}, tied, clients=CLIENTS, resamples=100)
    assert row(table, cohort="west", tested="all", metric="auc")["subjects"] == SIZE - 1
    assert (
        "without 1 subject whom another cohort has, too"
        in row(table, cohort="west", tested="all", metric="auc")["note"]
    )
    assert "mean" not in set(table["cohort"])  # of one cohort


def test_personalised_models_have_none_for_a_stranger(runs, splits):
    predictions, without = runs
    nobody = {s: frame[frame["cohort"] != "west"] for s, frame in without["west"][CELL].items()}
    table = transfer(predictions, {"west": {CELL: nobody}}, splits, clients=CLIENTS, resamples=100)
    unseen = table[(table["cohort"] == "west") & (table["model"] == "unseen")]
    assert unseen["value"].isna().all()
    assert unseen["note"].str.contains("no predictions: each client has a model of its own").all()
    assert "difference" not in set(table["model"])


def test_what_does_not_fit_is_refused(runs, splits):
    predictions, without = runs
    options = {"clients": CLIENTS, "resamples": 100}
    with pytest.raises(StudyError, match="cohort south: said to be external, and in the split it trains"):
        transfer(predictions, {}, splits, external=["south"], **options)
    with pytest.raises(StudyError, match="linear/frozen/fedavg without west: the cell itself has no predictions"):
        transfer({OTHER: predictions[OTHER]}, {"west": without["west"]}, splits, **options)
    fewer = {s: frame[frame["subject"] != "003"] for s, frame in without["west"][CELL].items()}
    with pytest.raises(StudyError, match="was tested on other scans"):
        transfer(predictions, {"west": {CELL: fewer}}, splits, **options)
