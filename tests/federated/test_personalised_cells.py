"""Cells whose clients have models of their own: what the global model beside them predicts, and fine-tuning at the end."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from federation import as_bytes, dying
from safetensors.numpy import load_file
from small_clients import make_client

from fedbrain.errors import StudyError
from fedbrain.federated import local
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.cell import train_cell
from fedbrain.federated.sharing import Sharing
from fedbrain.federated.task import TrainingOptions, round_generator, train
from fedbrain.models.classifier import build_classifier
from fedbrain.models.lora import LoRA
from fedbrain.registry import names
from fedbrain.tables import PREDICTIONS, ROUNDS, read_table

SHAPE = (384, 2, 2, 2)
TRAINING = {"rounds": 3, "batch_size": 4, "learning_rate": 0.01}
FINE_TUNED = {"aggregation": "fedavg_ft", "aggregation_options": {"personal_epochs": 4}}
# Which rules have a model beside their clients' own ones; all others' one model is the global one.
GLOBAL_MODEL = {
    "fedper": False,
    "fedbn": False,
    "flop": False,
    "fedsa_lora": False,
    "ditto": True,
    "fedavg_ft": True,
    "med_dual_lora": True,
    "fedopal": True,
}


@pytest.fixture
def clients():
    """Two that train, and one that does not."""
    sizes = {"A": (9, 6, 6), "B": (5, 6, 6), "C": (0, 0, 4)}
    return {n: make_client(n, *s, seed=k, shape=SHAPE, effect=0.1) for k, (n, s) in enumerate(sizes.items())}


def run(clients, folder, aggregation="ditto", **options):
    settings = {"head": "linear", "tuning": "frozen", "training": TRAINING, "seed": 1} | options
    return train_cell(clients, aggregation=aggregation, folder=folder, **settings)


def read(folder, name="predictions_global.tsv"):
    return read_table(folder / name, PREDICTIONS)


def by_hand(tensors, samples):
    """Scores of a linear head on the means over positions."""
    logits = samples.x.double().mean((2, 3, 4)).numpy() @ tensors["head.classify.weight"].T.astype(float)
    logits += tensors["head.classify.bias"]
    return 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))


def test_each_rule_says_whether_it_has_a_global_model():
    rules = {name: build_rule(name) for name in names("aggregation")}
    assert {name: rule.has_global_model for name, rule in rules.items() if rule.personalised} == GLOBAL_MODEL
    assert all(rule.has_global_model for name, rule in rules.items() if name not in GLOBAL_MODEL)
    for name, private, found in (("fedavg", ["local"], True), ("fedavg", ["head"], False), ("fedce", ["norm"], False)):
        rule = build_rule(name, private=private)
        assert (rule.personalised, rule.has_global_model) == (True, found)
    assert not build_rule("med_dual_lora", head="local").has_global_model


@pytest.mark.parametrize("aggregation", ["ditto", "fedavg_ft"])
def test_the_global_model_predicts_for_every_client_with_the_shared_tensors_alone(clients, tmp_path, aggregation):
    summary = run(clients, tmp_path, aggregation)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, side in (("predictions_global.tsv", "test"), ("predictions_global_validation.tsv", "validation")):
        table = read(tmp_path, name)
        for client, data in clients.items():
            own = table[table["cohort"] == client]
            assert own["subject"].tolist() == list(getattr(data, side).subjects)
            expected = by_hand(tensors, getattr(data, side))
            np.testing.assert_allclose(own["score"].astype(float), expected, atol=1e-6)
    personal = read(tmp_path, "predictions.tsv")
    assert set(personal["cohort"]) == {"A", "B"}
    assert not np.allclose(personal["score"], read(tmp_path)["score"][: len(personal)], atol=1e-3)
    assert "C: no train scans: no model of its own, predictions by the global model only" in summary["warnings"]


@pytest.mark.parametrize("aggregation", ["fedavg", "flop", "local"])
def test_where_clients_have_no_own_model_or_the_rule_no_global_one_the_tables_are_empty(clients, tmp_path, aggregation):
    run(clients, tmp_path, aggregation, head="conv_s" if aggregation == "flop" else "linear")
    for side in ("", "_validation"):
        assert len(read(tmp_path, f"predictions_global{side}.tsv")) == 0
        assert len(read(tmp_path, f"predictions{side}.tsv"))


def test_a_client_that_was_not_drawn_is_tested_with_the_global_model(clients, tmp_path):
    del clients["C"]
    options = TRAINING | {"rounds": 1, "sample": 1}
    summary = run(clients, tmp_path, training=options)
    (absent,) = set(clients) - set(read(tmp_path, "predictions.tsv")["cohort"])
    assert set(read(tmp_path)["cohort"]) == {"A", "B"}
    assert any(text.startswith(f"{absent}: had trained nothing of its own") for text in summary["warnings"])


def test_the_global_model_of_two_adapters_is_a_model_with_the_shared_one_alone(tmp_path):
    origin = {"encoder": "abc", "weights": "random (seed 0)", "cut": "block11"}
    clients = [make_client(name, 2, 1, 2, seed=k, shape=(512, 768), effect=0.3) for k, name in enumerate("AB")]
    clients = {client.name: replace(client, origin=origin) for client in clients}
    training = {"rounds": 1, "batch_size": 2, "learning_rate": 0.01}
    options = {"tuning": "dual_lora", "tuning_options": {"blocks": 1}, "training": training}
    run(clients, tmp_path, "med_dual_lora", **options)
    tensors = load_file(tmp_path / "model.safetensors")
    shared = {name: torch.tensor(array) for name, array in tensors.items() if "/" not in name}
    assert not [name for name in shared if ".local." in name]
    model = build_classifier("linear", LoRA(blocks=1), seed=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(shared) == trained
    model.load_state_dict(shared, strict=False)
    table, personal = read(tmp_path), read(tmp_path, "predictions.tsv")
    for name, client in clients.items():
        with torch.inference_mode():
            scores = model.eval()(client.test.x.float()).softmax(1)[:, 1]
        np.testing.assert_allclose(table["score"][table["cohort"] == name].astype(float), scores, atol=1e-6)
    assert (table["score"] != personal["score"]).all()


def test_fine_tuning_leaves_the_federation_as_fedavg_makes_it_to_the_bit(clients, tmp_path):
    plain, tuned = run(clients, tmp_path / "plain", "fedavg"), run(clients, tmp_path / "tuned", **FINE_TUNED)
    for side in ("", "_validation"):
        ours = (tmp_path / f"tuned/predictions_global{side}.tsv").read_bytes()
        assert ours == (tmp_path / f"plain/predictions{side}.tsv").read_bytes()
    tensors, theirs = (load_file(tmp_path / f"{name}/model.safetensors") for name in ("tuned", "plain"))
    assert as_bytes({name: array for name, array in tensors.items() if "/" not in name}) == as_bytes(theirs)
    rounds = [read_table(tmp_path / f"{name}/rounds.tsv", ROUNDS) for name in ("tuned", "plain")]
    pd.testing.assert_frame_equal(
        *(table.drop(columns=["seconds", "peak_memory"]) for table in rounds), check_exact=True
    )
    assert all(tuned[key] == plain[key] for key in ("best_round", "reason", "bytes_down", "bytes_up"))


def test_an_own_model_is_the_global_one_trained_on_by_hand(clients, tmp_path):
    run(clients, tmp_path, **FINE_TUNED)
    tensors, predictions = load_file(tmp_path / "model.safetensors"), read(tmp_path, "predictions.tsv")
    options = TrainingOptions.of(TRAINING | {"local_epochs": 4})
    for name in "AB":
        model = build_classifier("linear", seed=0)
        shared = {key: torch.tensor(array) for key, array in tensors.items() if "/" not in key}
        model.load_state_dict(shared, strict=False)
        train(model, clients[name].train, options, round_generator(1, name, TRAINING["rounds"] + 1), "cpu")
        state = model.state_dict()
        own = {key: tensors[f"{name}/{key}"] for key in Sharing.of(model).select(state, "shared")}
        assert as_bytes(own) == as_bytes({key: state[key].numpy() for key in own})
        found = predictions["score"][predictions["cohort"] == name].astype(float)
        np.testing.assert_allclose(found, by_hand(own, clients[name].test), atol=1e-6)


def test_a_run_that_is_stopped_while_it_fine_tunes_goes_on_with_the_next_client(clients, tmp_path, monkeypatch):
    run(clients, tmp_path / "whole", **FINE_TUNED)
    calls = dying(monkeypatch, local, 2 * 3 + 2, RuntimeError("killed"))  # two clients, three rounds, A is done
    with pytest.raises(RuntimeError, match="killed"):
        run(clients, tmp_path / "resumed", **FINE_TUNED)
    run(clients, tmp_path / "resumed", **FINE_TUNED)
    assert len(calls) == 2 * 3 + 3
    files = {path.name for path in (tmp_path / "whole").iterdir() if path.is_file()} - {"rounds.tsv", "summary.json"}
    assert len(files) == 5
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()
    assert {path.name for path in (tmp_path / "resumed").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def test_options_of_fine_tuning_are_checked():
    for value in (0, 1.5, True):
        with pytest.raises(StudyError, match="fedavg_ft: personal_epochs must be a whole number from 1"):
            build_rule("fedavg_ft", personal_epochs=value)
    with pytest.raises(StudyError, match="leave private out"):
        build_rule("fedavg_ft", private=["head"])
