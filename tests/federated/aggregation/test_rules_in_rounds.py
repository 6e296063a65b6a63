"""Every rule in whole federated runs with a low-rank adapter and a trained head: what it does, and what survives a kill."""

from dataclasses import replace

import numpy as np
import pytest
from federation import as_bytes, failing, timeless
from federation import federate as federate_small
from small_clients import build_adapted_model, make_client

from fedbrain.federated.aggregation.adagrad import FedAdagrad
from fedbrain.federated.aggregation.averages import FedAvg, SimpleAvg
from fedbrain.federated.aggregation.bulyan import Bulyan
from fedbrain.federated.aggregation.fedprox import FedProx
from fedbrain.federated.aggregation.lora import FedIT, FlexLoRA, factor_pairs
from fedbrain.federated.aggregation.lora_parts import FedSALoRA, FFALoRA, RoLoRA
from fedbrain.federated.aggregation.merging import FedExLoRA, FLoRA, MergingRule
from fedbrain.federated.aggregation.optimizers import FedAdam, FedAvgM, FedYogi
from fedbrain.federated.aggregation.q_fedavg import QFedAvg
from fedbrain.federated.aggregation.robust import Krum, Median, MultiKrum, TrimmedMean
from fedbrain.federated.aggregation.scaffold import Scaffold
from fedbrain.federated.checkpoint import load_checkpoint
from fedbrain.federated.rounds import ClientFailure
from fedbrain.federated.task import TrainingOptions, evaluate

OPTIONS = TrainingOptions(rounds=3, batch_size=5, learning_rate=0.02)
# A server's step is about its learning rate, whatever the clients' updates: three rounds take a large one.
RULES = [
    FedAvgM(),
    FedAdam(learning_rate=0.1),
    FedYogi(learning_rate=0.1),
    FedAdagrad(learning_rate=0.1),
    QFedAvg(q=0.01, learning_rate=0.1),
    Median(),
    TrimmedMean(),
    Krum(),
    MultiKrum(),
    Bulyan(),
    FedIT(),
    FlexLoRA(),
    FedProx(),
    Scaffold(learning_rate=0.2),
    FFALoRA(),
    FedSALoRA(),
    RoLoRA(),
    FedExLoRA(),
    FLoRA(),
    FlexLoRA(ranks={"B": 1}),
]
RULES += [FlexLoRA(split="sqrt")]


def federate(clients, rule, options=OPTIONS, **loop):
    return federate_small(clients, rule, options, build_model=build_adapted_model, **loop)[0]


def end_of(clients, rule, **options):
    """The model after the last round: without validation scans it is the one that is kept."""
    clients = {
        name: replace(client, validation=make_client(name, validation=0).validation) for name, client in clients.items()
    }
    return federate(clients, rule, options=replace(OPTIONS, **options)).tensors


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_run_that_ended_early_goes_on_and_ends_in_the_same_bytes(three_clients, rule, tmp_path):
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("whole", "killed")}
    again = {"checkpoint": paths["killed"], "identity": "run", "folder": tmp_path / "clients"}
    whole = federate(three_clients, rule, checkpoint=paths["whole"], identity="run")
    with pytest.raises(ClientFailure, match="round 3"):
        federate(three_clients, rule, load=failing(three_clients, "C", {3}), **again)
    resumed = federate(three_clients, rule, **again)
    assert as_bytes(resumed.tensors) == as_bytes(whole.tensors)
    assert timeless(resumed.rows) == timeless(whole.rows)
    ends = [load_checkpoint(path, "run").state for path in paths.values()]
    assert as_bytes(ends[0].moments) == as_bytes(ends[1].moments)
    assert ends[0].memory == ends[1].memory
    assert bool(ends[0].moments) == isinstance(
        rule, FedAvgM | FedAdam | Scaffold | MergingRule
    )  # what had to survive is there


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_three_rounds_learn_and_report_weights(three_clients, rule):
    result = federate(three_clients, rule, options=replace(OPTIONS, rounds=3, local_epochs=3))
    for number in (1, 2, 3):
        weights = [row["weight"] for row in result.rows if row["round"] == number]
        if isinstance(rule, QFedAvg):  # its steps are shorter than the mean
            assert 0.8 < sum(weights) < 1
        else:
            assert sum(weights) == pytest.approx(1)
        assert min(weights) >= 0
    model = build_adapted_model()
    before = [evaluate(model, client.validation).loss for client in three_clients.values()]
    after = [row["validation_loss"] for row in result.rows if row["round"] == result.best_round]
    assert sum(after) < 0.9 * sum(before)


def test_fedit_is_fedavg_and_the_product_rule_is_not(three_clients):
    fedavg, fedit, flexlora = (end_of(three_clients, rule, rounds=1) for rule in (FedAvg(), FedIT(), FlexLoRA()))
    assert as_bytes(fedavg) == as_bytes(fedit)
    (a, b), *_ = factor_pairs(fedavg).items()
    difference = np.abs(flexlora[b] @ flexlora[a] - fedavg[b] @ fedavg[a]).max()
    assert difference > 1e-3 * np.abs(fedavg[b] @ fedavg[a]).max()
    assert all(fedavg[name].tobytes() == flexlora[name].tobytes() for name in fedavg if name not in (a, b))


def test_server_optimizers_at_rest_and_krum_of_all_are_the_averages(three_clients):
    fedavg, simple = end_of(three_clients, FedAvg()), end_of(three_clients, SimpleAvg())
    for rule, expected in ((FedAvgM(momentum=0), fedavg), (MultiKrum(byzantine=0), simple)):
        ours = end_of(three_clients, rule)
        for name, tensor in expected.items():
            np.testing.assert_allclose(ours[name], tensor, rtol=0, atol=2e-6)
