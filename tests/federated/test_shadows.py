from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logit
from small_clients import make_client

from fedbrain.federated.cell import train_cell
from fedbrain.federated.shadows import member_logits, shadow_clients
from fedbrain.tables import PREDICTIONS, SPLITS, read_table

SHAPE = (384, 2, 2, 2)
TRAINING = {"rounds": 2, "batch_size": 4, "learning_rate": 0.01}


@pytest.fixture
def clients():
    return {
        name: make_client(name, count, 4, test, seed=k, shape=SHAPE, effect=0.1)
        for k, (name, count, test) in enumerate([("A", 9, 6), ("B", 5, 3)])
    }


def splits_of(clients, persons=None):
    rows = [
        {"cohort": name, "subject": subject, "person": f"{name}/{subject}", "label": int(label), "split": side}
        for name, client in clients.items()
        for side in ("train", "validation", "test")
        for subject, label in zip(getattr(client, side).subjects, getattr(client, side).y)
    ]
    table = pd.DataFrame(rows)
    table["person"] = table["person"].replace(persons or {})
    return table.astype(SPLITS)


def inside(clients):
    return {(name, subject) for name, client in clients.items() for subject in client.train.subjects}


def test_two_shadows_are_complementary_halves_within_label_and_cohort(clients):
    splits = splits_of(clients)
    pool = {(row.cohort, row.subject): row.label for row in splits.itertuples() if row.split != "validation"}
    first, second, third = (shadow_clients(clients, splits, number, seed=3) for number in (0, 1, 2))
    assert inside(first) | inside(second) == set(pool)
    assert not inside(first) & inside(second)
    assert inside(first) != inside(third)
    for cohort in "AB":
        for label in (0, 1):
            stratum = {key for key, value in pool.items() if (key[0], value) == (cohort, label)}
            assert abs(len(stratum & inside(first)) - len(stratum & inside(second))) <= 1
        sizes = [len(halves[cohort].train) for halves in (first, second)]
        assert abs(sizes[0] - sizes[1]) <= 1
        assert first[cohort].validation is clients[cohort].validation
        assert set(first[cohort].test.scans) == set(second[cohort].train.scans)
        assert list(first[cohort].train.scans) == sorted(first[cohort].train.scans)


def test_each_scan_keeps_its_input_and_label(clients):
    shadow = shadow_clients(clients, splits_of(clients), 0, seed=3)["A"].train
    for place, scan in enumerate(shadow.scans):
        side = clients["A"].train if scan in clients["A"].train.scans else clients["A"].test
        where = side.scans.index(scan)
        assert shadow.y[place] == side.y[where]
        assert (shadow.x[torch.tensor([place])][0] == side.x[where]).all()


def test_a_person_of_two_cohorts_is_on_one_side_and_validation_persons_are_on_none(clients):
    one = {f"B/{clients['B'].train.subjects[0]}": f"A/{clients['A'].train.subjects[0]}"}
    splits = splits_of(clients, one)
    held_out = {("A", subject) for subject in clients["A"].validation.subjects}
    for number in range(12):
        members = inside(shadow_clients(clients, splits, number, seed=1))
        assert (("A", clients["A"].train.subjects[0]) in members) == (("B", clients["B"].train.subjects[0]) in members)
        assert not members & held_out


def test_a_cohort_that_does_not_train_has_no_part(clients):
    none = replace(clients["B"], train=clients["B"].without_test().test)
    assert set(shadow_clients({"A": clients["A"], "B": none}, splits_of(clients), 0, seed=1)) == {"A"}


@pytest.mark.parametrize("aggregation", ["fedavg", "local", "centralized", "ditto", "part_private"])
def test_a_released_model_gives_each_client_the_scores_that_its_run_has_written(clients, tmp_path, aggregation):
    cell = {"head": "linear", "tuning": "frozen", "aggregation": aggregation, "training": TRAINING, "seed": 1}
    if aggregation == "part_private":
        cell |= {"aggregation_options": {"kind": "fedavg", "private": ["head.classify.bias"]}}
    train_cell(clients, folder=tmp_path, **cell)
    table = member_logits(clients, folder=tmp_path, **cell)
    assert_same_scores(clients, tmp_path, table)


def assert_same_scores(clients, folder, table):
    expected = {
        (name, subject): int(side == "train")
        for name, client in clients.items()
        for side in ("train", "test")
        for subject in getattr(client, side).subjects
    }
    assert dict(zip(zip(table["cohort"], table["subject"]), table["member"])) == expected
    predictions = read_table(folder / "predictions.tsv", PREDICTIONS)
    joined = predictions.merge(table, on=["cohort", "subject"], how="left")
    own = logit(joined["score"].to_numpy(float)) * np.where(joined["label"] == 1, 1, -1)
    assert joined["logit"].to_numpy(float) == pytest.approx(own, rel=1e-9)


@pytest.mark.parametrize("aggregation", ["flexlora", "rate_my_lora"])
def test_adapters_of_lower_rank_and_merged_weights_are_put_together_as_in_the_run(tmp_path, aggregation):
    origin = {"encoder": "abc", "weights": "random (seed 0)", "cut": "block11"}
    clients = {name: make_client(name, 2, 1, 1, seed=k, shape=(512, 768), effect=0.3) for k, name in enumerate("AB")}
    clients = {name: replace(client, origin=origin) for name, client in clients.items()}
    cell = {"head": "linear", "tuning": "lora", "tuning_options": {"blocks": 1, "rank": 2}, "aggregation": aggregation}
    cell |= {"training": {"rounds": 1, "batch_size": 2, "learning_rate": 0.01}, "seed": 1}
    if aggregation == "flexlora":
        cell["aggregation_options"] = {"ranks": {"A": 1}}
    train_cell(clients, folder=tmp_path, **cell)
    assert_same_scores(clients, tmp_path, member_logits(clients, folder=tmp_path, **cell))
