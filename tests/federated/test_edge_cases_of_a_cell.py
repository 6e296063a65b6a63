"""Clients and settings at the edges, with real training: plain rules, rules with models of the clients' own, rules of adapters."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from federation import OPTIONS, SEED, as_bytes, federate
from small_clients import build_adapted_model, build_small_model, make_client, make_samples
from torch import nn
from torch.nn import functional

from fedbrain.evaluation.performance import performance
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.aggregation.rule import Difference, Update
from fedbrain.federated.cell import train_cell
from fedbrain.federated.rounds import ClientFailure
from fedbrain.federated.task import SGD, TrainingOptions, class_weights, evaluate, round_generator, train
from fedbrain.models.references import ResNet18
from fedbrain.study.config import training_options
from fedbrain.tables import PREDICTIONS, ROUNDS, read_table

SHAPE = (384, 2, 2, 2)
# rule, its options, the model
FAMILIES = {
    "fedavg": ("fedavg", {}, build_small_model),
    "fedadam": ("fedadam", {}, build_small_model),
    "qfedavg": ("qfedavg", {}, build_small_model),
    "own layer": ("fedavg", {"private": ["2.*"]}, build_small_model),
    "ditto": ("ditto", {}, build_small_model),
    "flexlora": ("flexlora", {}, build_adapted_model),
    "fedsa_lora": ("fedsa_lora", {}, build_adapted_model),
    "rate_my_lora": ("rate_my_lora", {}, build_adapted_model),
    "fedex_lora": ("fedex_lora", {}, build_adapted_model),
}
CELL_RULES = ("fedavg", "scaffold", "qfedavg", "ditto", "fedavg_ft", "rate_my_lora")


def run(clients, family, **options):
    rule, settings, build_model = FAMILIES[family]
    return federate(clients, build_rule(rule, **settings), replace(OPTIONS, **options), build_model=build_model)[0]


def cell(clients, folder, aggregation, head="linear", **training):
    settings = {"rounds": 3, "batch_size": 4, "learning_rate": 0.01} | training
    return train_cell(
        clients, head=head, tuning="frozen", aggregation=aggregation, training=settings, seed=1, folder=folder
    )


def of_train(name, labels, seed):
    """A client with training scans of these labels and a few others."""
    return make_client(name, len(labels), seed=seed, labels=labels)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_of_one_and_last_batches_of_one_train(family):
    clients = {name: make_client(name, count, seed=k) for k, (name, count) in enumerate([("A", 6), ("B", 11)])}
    for size in (1, 5):  # 6 and 11 are one more than batches of 5
        result = run(clients, family, batch_size=size, rounds=2)
        assert {row["status"] for row in result.rows} == {"ok"}
        assert all(np.isfinite(tensor).all() for tensor in result.tensors.values())
        assert all(np.isfinite(row["loss"]) for row in result.rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_larger_than_the_data_is_all_of_it(family):
    clients = {name: make_client(name, count, seed=k) for k, (name, count) in enumerate([("A", 6), ("B", 11)])}
    whole, larger = (run(clients, family, batch_size=size, rounds=2) for size in (11, 1000))
    assert as_bytes(whole.tensors) == as_bytes(larger.tensors)


@pytest.mark.parametrize("weights", ["balanced", "none"])
def test_an_epoch_with_a_last_batch_of_one_is_adamw_written_out(weights):
    samples = make_samples(5, seed=4, tag="x", labels=[1, 0, 0, 0, 0])
    options = TrainingOptions(batch_size=2, learning_rate=0.05, class_weights=weights, local_epochs=3)
    ours, theirs = build_small_model(), build_small_model()
    train(ours, samples, options, round_generator(1, "A", 1), "cpu")

    factors = torch.tensor([5 / 8, 5 / 2] if weights == "balanced" else [1.0, 1.0])  # n / (2 n_c)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.05, weight_decay=1e-2)
    generator = round_generator(1, "A", 1)
    for _ in range(3):
        for batch in torch.randperm(5, generator=generator).split(2):
            optimizer.zero_grad()
            losses = functional.cross_entropy(theirs(samples.x[batch].float()), samples.y[batch], reduction="none")
            (losses * factors[samples.y[batch]]).mean().backward()
            optimizer.step()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "kind", "expected"),
    [
        ([1, 0, 0, 0], "balanced", [4 / 6, 4 / 2]),
        ([0, 1], "balanced", [1, 1]),
        ([1, 1, 1], "balanced", [1, 1]),  # one class: each scan counts 1
        ([0], "balanced", [1, 1]),
        ([1, 0, 0, 0], "none", [1, 1]),
    ],
)
def test_class_weights_by_hand(labels, kind, expected):
    weights = class_weights(torch.tensor(labels), kind)
    assert weights.tolist() == pytest.approx(expected)
    assert weights[torch.tensor(labels)].mean() == pytest.approx(1)


def test_a_step_goes_along_the_gradient_of_the_weighted_loss():
    """One batch of a linear model by SGD: the gradient of softmax regression, in numpy."""
    samples = make_samples(4, seed=2, tag="x", labels=[1, 0, 0, 0])
    model = nn.Linear(6, 2)
    before, bias = (parameter.detach().double().numpy().copy() for parameter in model.parameters())
    options = TrainingOptions(batch_size=4, weight_decay=0.0)
    train(
        model, samples, options, round_generator(1, "A", 1), "cpu", optimizer=lambda parameters: SGD(parameters, 0.1, 0)
    )
    x, y = samples.x.double().numpy(), np.eye(2)[samples.y.numpy()]
    logits = x @ before.T + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    factors = np.where(y[:, 1] == 1, 4 / 2, 4 / 6)[:, None]
    gradient = (factors * (p - y)).T @ x / 4
    np.testing.assert_allclose(model.weight.detach(), before - 0.1 * gradient, atol=1e-6)


@pytest.mark.parametrize("head", ["conv_s", "conv_l"])
def test_convolutional_heads_train_on_batches_of_one(head, tmp_path):
    clients = {name: make_client(name, 1, 1, 1, shape=SHAPE, labels=[k], seed=k) for k, name in enumerate("AB")}
    summary = cell(clients, tmp_path, "fedavg", head=head, rounds=1, batch_size=1)
    assert summary["best_round"] == {"global": 1}


def test_resnet18_trains_on_a_batch_of_one_though_it_has_batch_norms():
    """Its statistics are over positions, too."""
    samples = make_samples(1, seed=1, tag="x", shape=(1, 32, 32, 32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet18(channels=1, classes=2, downsample=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss = train(model, samples, TrainingOptions(batch_size=1), round_generator(1, "A", 1), "cpu")
    assert np.isfinite(loss)
    after = model.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any("running_mean" in name and not torch.equal(after[name], before[name]) for name in after)


def build_normed_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_norm_without_positions_says_why_a_batch_of_one_is_none():
    clients = {"A": make_client("A", 6), "B": make_client("B", 4, seed=1)}
    options = replace(OPTIONS, batch_size=5)  # A's last batch has one scan
    with pytest.raises(ClientFailure, match="round 1: .*client A: ValueError: Expected more than 1 value per channel"):
        federate(clients, options=options, build_model=build_normed_model)
    result, _ = federate(clients, options=replace(options, quorum=1), build_model=build_normed_model)
    status = {(row["client"], row["status"]) for row in result.rows}
    assert status == {("A", "failed"), ("B", "ok")}
    assert all("more than 1 value per channel" in row["reason"] for row in result.rows if row["client"] == "A")


@pytest.mark.parametrize("family", FAMILIES)
def test_clients_of_one_class_and_of_one_scan_take_part(family):
    clients = {
        "both": make_client("both", 8),
        "cases": of_train("cases", [1] * 5, 1),
        "controls": of_train("controls", [0] * 4, 2),
        "single": make_client("single", 1, 0, 0, seed=3),
    }
    result = run(clients, family)
    assert {row["status"] for row in result.rows} == {"ok"}
    assert all(np.isfinite(row["loss"]) for row in result.rows)
    judged = {row["client"]: row["validation_loss"] is not None for row in result.rows}
    assert judged == {"both": True, "cases": True, "controls": True, "single": False}
    assert all(np.isfinite(tensor).all() for tensor in result.tensors.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_where_nobody_has_validation_scans_it_is_the_last_round(family):
    clients = {name: make_client(name, 6, 0, seed=k) for k, name in enumerate("AB")}
    for patience in (None, 1):  # with nothing to judge by, there is no patience to lose
        result = run(clients, family, rounds=3, patience=patience)
        assert result.best_round == 3
        assert "no client has validation scans: the last round" in result.reason
        assert max(row["round"] for row in result.rows) == 3


def odd_clients():
    clients = {
        "both": make_client("both", shape=SHAPE),
        "cases": make_client("cases", 4, labels=[1] * 4, shape=SHAPE, seed=1),
        "single": make_client("single", 1, 0, 0, shape=SHAPE, seed=2),
        "untrained": make_client("untrained", 0, 3, 4, shape=SHAPE, seed=3),
        "untested": make_client("untested", 5, 3, 0, shape=SHAPE, seed=4),
        "unvalidated": make_client("unvalidated", 5, 0, 4, shape=SHAPE, seed=5),
        "one class": make_client("one class", 5, 3, 4, shape=SHAPE, seed=6),
    }
    tested = clients["one class"]
    zeros = torch.zeros_like(tested.test.y)
    clients["one class"] = replace(
        tested, test=replace(tested.test, y=zeros), validation=replace(tested.validation, y=zeros[:3])
    )
    return clients


@pytest.mark.parametrize("aggregation", [*CELL_RULES, "local", "centralized"])
def test_odd_clients_are_rows_with_reasons(aggregation, tmp_path):
    clients = odd_clients()
    summary = cell(clients, tmp_path, aggregation)
    rounds = read_table(tmp_path / "rounds.tsv", ROUNDS)
    if aggregation != "centralized":
        assert set(rounds["client"]) == set(clients) - {"untrained"}
        assert set(rounds.loc[rounds["validation_loss"].isna(), "client"]) == {"single", "unvalidated"}
    assert set(rounds["status"]) == {"ok"}
    texts = "\n".join(summary["warnings"])
    for text in (
        "untrained: no train scans",
        "cases: train scans of one class only (0 controls, 4 cases)",
        "single: no validation scans: no part in the choice of the round",
        "single: no test scans: no predictions",
        "untested: no test scans: no predictions",
        "one class: validation scans of one class only (3 controls, 0 cases)",
        "one class: test scans of one class only (4 controls, 0 cases)",
    ):
        assert text in texts

    predictions = read_table(tmp_path / "predictions.tsv", PREDICTIONS)
    own = aggregation in ("ditto", "fedavg_ft", "local")  # who did not train has no model of its own
    expected = {"both", "cases", "unvalidated", "one class"} | (set() if own else {"untrained"})
    assert set(predictions["cohort"]) == expected

    table = performance(
        {("linear", "frozen", aggregation): {1: predictions}}, clients=list(clients), resamples=50
    ).set_index(["client", "metric"])
    for client in ("one class", "single", "untested", *(["untrained"] if own else [])):
        row = table.loc[client, "auc"]
        assert pd.isna(row["value"])
        assert row["note"]
    assert 0 <= table.loc["pooled", "auc"]["value"] <= 1


@pytest.mark.parametrize("selection", ["loss", "balanced_accuracy"])
@pytest.mark.parametrize("aggregation", ["fedavg", "fedadam", "ditto", "fedavg_ft", "rate_my_lora", "local"])
def test_rounds_end_and_are_chosen_by_validation_alone(aggregation, selection, tmp_path):
    clients = {
        name: make_client(name, n, seed=k, shape=SHAPE, effect=0.1) for k, (name, n) in enumerate([("A", 9), ("B", 5)])
    }

    def turned(side):
        return {
            name: replace(client, **{side: replace(getattr(client, side), y=1 - getattr(client, side).y)})
            for name, client in clients.items()
        }

    training = {"rounds": 8, "patience": 1, "selection": selection, "learning_rate": 0.05}
    found = {}
    for side, given in (("none", clients), ("test", turned("test")), ("validation", turned("validation"))):
        summary = cell(given, tmp_path / side, aggregation, **training)
        found[side] = summary["reason"], (tmp_path / side / "model.safetensors").read_bytes()
    assert found["test"] == found["none"]
    assert found["validation"][0] != found["none"][0]


def test_settings_of_a_head_and_a_tuning_reach_the_training(tmp_path):
    config = {"head": {}, "tuning": {}, "training": {"rounds": 5, "batch_size": 4, "learning_rate": 0.3}}
    config["training"] |= {"heads": {"linear": {"rounds": 2}}, "tunings": {"frozen": {"learning_rate": 0.02}}}
    clients = {name: make_client(name, 6, seed=k, shape=SHAPE) for k, name in enumerate("AB")}
    over, direct = tmp_path / "over", tmp_path / "direct"
    summary = cell(clients, over, "fedavg", **training_options(config, "linear", "frozen"))
    cell(clients, direct, "fedavg", rounds=2, batch_size=4, learning_rate=0.02)
    assert (summary["training"]["rounds"], summary["training"]["learning_rate"]) == (2, 0.02)
    for file in ("model.safetensors", "predictions.tsv"):
        assert (over / file).read_bytes() == (direct / file).read_bytes()


@pytest.mark.parametrize("rule", ["fedadam", "fedavgm", "fedadagrad"])
def test_the_schedule_is_of_the_clients_and_the_servers_rate_stays(rule):
    """Three rounds written out: cosine gives 1, 3/4 and 1/4 of the clients' rate; the rule is told the updates as they are."""
    clients = {name: make_client(name, n, 0, seed=k) for k, (name, n) in enumerate([("A", 6), ("B", 9)])}
    options = replace(OPTIONS, rounds=3, schedule="cosine")
    result, _ = federate(clients, rule, options)

    rule = build_rule(rule)
    world = {name: tensor.numpy().copy() for name, tensor in build_small_model().state_dict().items()}
    state = rule.init(world, "AB")
    for number, share in ((1, 1.0), (2, 0.75), (3, 0.25)):
        updates = []
        for name, client in clients.items():
            model = build_small_model()
            model.load_state_dict({key: torch.as_tensor(array) for key, array in world.items()})
            settings = replace(OPTIONS, learning_rate=share * OPTIONS.learning_rate)
            train(model, client.train, settings, round_generator(SEED, name, number), "cpu")
            after = {key: tensor.numpy().copy() for key, tensor in model.state_dict().items()}
            updates.append(Update(name, Difference(after, world), len(client.train)))
        state, world, _ = rule.apply(state, updates)
    for name, tensor in world.items():
        # AdamW makes much of the last bit of a rate; the mean of two updates is summed in another order.
        np.testing.assert_allclose(result.tensors[name], tensor, rtol=0, atol=1e-5)


def test_an_evaluation_of_one_class_is_the_recall_of_that_class():
    evaluation = evaluate(build_small_model(), make_samples(5, seed=3, tag="x", labels=[1] * 5))
    assert evaluation.balanced_accuracy == np.mean(evaluation.scores >= 0.5)
    assert np.isfinite(evaluation.loss)
