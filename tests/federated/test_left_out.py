"""A cohort that is left out has no part in anything but its own predictions; the strongest test is a study that never had it."""

from dataclasses import replace

import pandas as pd
import pytest
from small_clients import make_client

from fedbrain.errors import StudyError
from fedbrain.evaluation.metrics import auc
from fedbrain.federated.cell import train_cell
from fedbrain.federated.data import leave_out
from fedbrain.tables import PREDICTIONS, ROUNDS, SPLITS, read_table

SHAPE = (384, 2, 2, 2)
TRAINING = {"rounds": 4, "batch_size": 4, "learning_rate": 0.02}
RULES = ["simpleavg", "fedavg", "fedce", "rate_my_lora", "fedadam", "scaffold", "fedprox", "centralized"]


@pytest.fixture
def clients():
    """A and B say the same of a brain; M (for mirrored) says the opposite, so that whoever has seen it is bent by it."""
    result = {
        name: make_client(name, 14, 6, 10, seed=k, shape=SHAPE, effect=0.3) for k, name in enumerate(["A", "B", "M"])
    }
    mirrored = {side: turned(getattr(result["M"], side)) for side in ("train", "validation", "test")}
    return result | {"M": replace(result["M"], **mirrored)}


def turned(samples):
    return replace(samples, y=1 - samples.y)


def splits_of(clients, **persons):
    """The table SPLITS of the clients; ``persons`` ties subjects together, subject by person."""
    rows = [
        (name, subject, persons.get(subject, f"{name}/{subject}"), 0, side)
        for name, client in clients.items()
        for side in ("train", "validation", "test")
        for subject in getattr(client, side).subjects
    ]
    return pd.DataFrame(rows, columns=list(SPLITS)).astype(SPLITS)


def run(clients, folder, aggregation, **options):
    settings = {"head": "linear", "tuning": "frozen", "training": TRAINING, "seed": 1} | options
    return train_cell(clients, aggregation=aggregation, folder=folder, **settings)


def predictions(folder, name="predictions"):
    return read_table(folder / f"{name}.tsv", PREDICTIONS)


@pytest.mark.parametrize("aggregation", RULES)
def test_a_run_without_a_cohort_has_the_bytes_of_a_study_that_never_had_it(clients, tmp_path, aggregation):
    without = {name: client for name, client in clients.items() if name != "M"}
    run(leave_out(clients, "M", splits_of(clients)), tmp_path / "left", aggregation)
    run(without, tmp_path / "never", aggregation)
    for file in ("model.safetensors", "predictions_validation.tsv"):
        assert (tmp_path / "left" / file).read_bytes() == (tmp_path / "never" / file).read_bytes()
    measured = [name for name in ("seconds", "peak_memory") if name in ROUNDS]
    rounds = [read_table(tmp_path / name / "rounds.tsv", ROUNDS).drop(columns=measured) for name in ("left", "never")]
    pd.testing.assert_frame_equal(*rounds, check_exact=True)
    inside = predictions(tmp_path / "left").query("cohort != 'M'").reset_index(drop=True)
    pd.testing.assert_frame_equal(inside, predictions(tmp_path / "never"), check_exact=True)


def test_all_scans_of_the_cohort_are_tested_once_in_the_order_of_their_names(clients, tmp_path):
    summary = run(leave_out(clients, "M", splits_of(clients)), tmp_path, "fedavg")
    everyone = [scan for side in ("train", "validation", "test") for scan in getattr(clients["M"], side).subjects]
    table = predictions(tmp_path)
    assert table.loc[table["cohort"] == "M", "subject"].tolist() == sorted(everyone)
    labels = {s: int(y) for side in ("train", "validation", "test") for s, y in zip(
        getattr(clients["M"], side).subjects, getattr(clients["M"], side).y
    )}  # fmt: skip
    mine = table[table["cohort"] == "M"]
    assert mine["label"].tolist() == [labels[subject] for subject in mine["subject"]]
    assert "M" not in set(predictions(tmp_path, "predictions_validation")["cohort"])
    assert summary["clients"]["M"]["train"] == {"controls": 0, "cases": 0}
    assert "M: no train scans: does not train" in summary["warnings"]


@pytest.mark.parametrize("aggregation", ["fedavg", "centralized"])
def test_turning_the_labels_of_the_cohort_changes_no_score(clients, tmp_path, aggregation):
    other = clients | {"M": replace(clients["M"], **{
        side: turned(getattr(clients["M"], side)) for side in ("train", "validation", "test")
    })}  # fmt: skip
    for name, of in (("one", clients), ("two", other)):
        run(leave_out(of, "M", splits_of(of)), tmp_path / name, aggregation)
    pd.testing.assert_series_equal(*(predictions(tmp_path / name)["score"] for name in ("one", "two")))


def test_a_mirrored_cohort_bends_whoever_sees_it_and_nobody_else(clients, tmp_path):
    """The model that never saw M takes its cases for controls; one that trained on M alone would not."""
    only = {"M": clients["M"]}
    run(only, tmp_path / "seen", "fedavg", training=TRAINING | {"rounds": 12})
    run(leave_out(clients, "M", splits_of(clients)), tmp_path / "unseen", "fedavg", training=TRAINING | {"rounds": 12})
    tested = set(clients["M"].test.subjects)
    values = {}
    for name in ("seen", "unseen"):
        table = predictions(tmp_path / name)
        mine = table[(table["cohort"] == "M") & table["subject"].isin(tested)]
        values[name] = auc(mine["label"], mine["score"])
    assert values["unseen"] < 0.25
    assert values["seen"] > 0.75


def test_persons_who_train_elsewhere_are_not_tested(clients):
    tied = {
        "MTrain003": "p",
        "ATrain001": "p",
        "MTest002": "q",
        "BTest004": "q",
        "MValidation001": "r",
        "BValidation000": "r",
    }
    left = leave_out(clients, "M", splits_of(clients, **tied))
    subjects = set(left["M"].test.subjects)
    assert not {"MTrain003", "MValidation001"} & subjects  # known from A's training, B's validation
    assert "MTest002" in subjects  # a test person everywhere
    assert len(subjects) == 30 - 2
    assert left["A"] is clients["A"]


def test_an_unknown_cohort_cannot_be_left_out(clients):
    with pytest.raises(StudyError, match="cohort X cannot be left out: the clients are A, B, M"):
        leave_out(clients, "X", splits_of(clients))


def test_local_has_no_model_for_a_client_that_only_tests(clients, tmp_path):
    summary = run(leave_out(clients, "M", splits_of(clients)), tmp_path / "with", "local")
    run({name: client for name, client in clients.items() if name != "M"}, tmp_path / "never", "local")
    for file in ("model.safetensors", "predictions.tsv", "predictions_validation.tsv"):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "never" / file).read_bytes()
    assert "M: no train scans: no model of its own, no predictions" in summary["warnings"]
