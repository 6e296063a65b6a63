"""Cells that train a part of the encoder, or no encoder at all: what travels, what is written, that a killed run goes on."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from federation import dying
from safetensors.numpy import load_file
from small_clients import make_client

from fedbrain.errors import StudyError
from fedbrain.federated import local, task
from fedbrain.federated.cell import train_cell
from fedbrain.federated.data import pool_clients
from fedbrain.federated.rounds import ClientFailure
from fedbrain.models.classifier import EncoderSource, build_classifier
from fedbrain.models.lora import DualLoRA, LoRA
from fedbrain.models.references import NearestClassCentre
from fedbrain.tables import PREDICTIONS, ROUNDS, read_table

TOKENS = (512, 768)
LAST = {"blocks": 1}
TRAINING = {"rounds": 2, "batch_size": 2, "learning_rate": 0.01}


ORIGIN = {"encoder": "abc", "weights": "random (seed 0)", "cut": "block11"}


def clients_of(shape, train=2, effect=0.3):
    clients = [make_client(name, train, 1, 1, seed=k, shape=shape, effect=effect) for k, name in enumerate("AB")]
    return {client.name: replace(client, origin=ORIGIN) for client in clients}


def run(clients, folder, tuning="lora", aggregation="fedavg", **options):
    settings = {"head": "linear", "tuning_options": LAST, "training": TRAINING, "seed": 1} | options
    return train_cell(clients, tuning=tuning, aggregation=aggregation, folder=folder, **settings)


@pytest.mark.parametrize("aggregation", ["fedavg", "fedce", "centralized", "local"])
def test_adapters_and_head_are_all_that_travels_and_is_written(aggregation, tmp_path):
    summary = run(clients_of(TOKENS), tmp_path, aggregation=aggregation)
    tensors = load_file(tmp_path / "model.safetensors")
    own = {name.removeprefix("A/"): tensor for name, tensor in tensors.items() if not name.startswith("B/")}
    shapes = {
        "encoder.blocks.11.attn.qkv.lora_A.default.weight": (8, 768),
        "encoder.blocks.11.attn.qkv.lora_B.default.weight": (2304, 8),
        "head.classify.weight": (2, 384),
        "head.classify.bias": (2,),
    }
    assert {name: tensor.shape for name, tensor in own.items()} == shapes
    trained = sum(np.prod(shape) for shape in shapes.values())
    assert summary["parameters"]["trained"] == trained
    travels = aggregation not in ("centralized", "local")
    assert summary["bytes_up"] == (2 * 2 * 4 * trained if travels else 0)  # clients, rounds, bytes of a float32
    assert np.abs(own["encoder.blocks.11.attn.qkv.lora_B.default.weight"]).max() > 0  # it learnt
    predictions = read_table(tmp_path / "predictions.tsv", PREDICTIONS)
    assert predictions["score"].between(0, 1).all()
    assert summary["cut"] == "block11"
    assert summary["weights"] == "random (seed 0)"


@pytest.mark.parametrize("rule", ["flora", "rate_my_lora"])
def test_merging_changes_the_rows_of_q_and_v_in_the_fused_projection_and_the_cells_model_has_them(tmp_path, rule):
    run(clients_of(TOKENS), tmp_path / "0", aggregation=rule, tuning_options=LAST | {"targets": ["q", "v"]})
    tensors = load_file(tmp_path / "0/model.safetensors")
    fused = "encoder.blocks.11.attn.qkv.fused.weight"
    assert [name for name in tensors if "lora" not in name and "head" not in name] == [fused]
    model = build_classifier("linear", LoRA(blocks=1, targets=("q", "v")), seed=0)
    moved = np.abs(tensors[fused] - model.state_dict()[fused].numpy()).reshape(3, 768, 768).max((1, 2))
    assert moved[0] > 0
    assert moved[1] == 0
    assert moved[2] > 0


def test_a_client_keeps_its_b_of_the_best_round_under_fedsa_lora(tmp_path):
    summary = run(clients_of(TOKENS), tmp_path, aggregation="fedsa_lora")
    tensors = load_file(tmp_path / "model.safetensors")
    a, b = (f"encoder.blocks.11.attn.qkv.lora_{factor}.default.weight" for factor in "AB")
    assert set(tensors) == {a, f"A/{b}", f"B/{b}", "head.classify.weight", "head.classify.bias"}
    assert not np.array_equal(tensors[f"A/{b}"], tensors[f"B/{b}"])
    assert not (tmp_path / "clients").exists()
    assert summary["bytes_up"] == 2 * 2 * 4 * (8 * 768 + 770)


def test_of_two_adapters_one_travels_and_the_other_is_each_clients_own(tmp_path):
    options = {"tuning_options": LAST | {"targets": ["q", "proj"], "local_rank": 2}}
    summary = run(clients_of(TOKENS), tmp_path, tuning="dual_lora", aggregation="fedopal", **options)
    tensors = load_file(tmp_path / "model.safetensors")
    layers = ("encoder.blocks.11.attn.proj", "encoder.blocks.11.attn.qkv.parts.q")
    shared = {f"{layer}.lora_{factor}.default.weight" for layer in layers for factor in "AB"}
    own = {f"{client}/{name.replace('default', 'local')}" for client in "AB" for name in shared}
    assert set(tensors) == shared | own | {"head.classify.weight", "head.classify.bias"}
    assert all(
        tensors[name].shape[0 if "lora_A" in name else 1] == (2 if "local" in name else 8) for name in shared | own
    )
    assert summary["bytes_up"] == 2 * 2 * 4 * (2 * 2 * 8 * 768 + 770)
    assert summary["parameters"]["trained"] == 2 * 2 * (8 + 2) * 768 + 770
    assert all(np.abs(tensors[name]).max() > 0 for name in shared | own)


def test_the_shared_one_of_two_adapters_starts_as_that_of_lora_does():
    with torch.random.fork_rng(devices=[]):
        one, two = (build_classifier("linear", tuning(blocks=1), seed=3).state_dict() for tuning in (LoRA, DualLoRA))
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items())
    extra = [name for name in two if name not in one]
    assert extra == [name.replace("default", "local") for name in one if "lora" in name]


def test_a_killed_tuned_cell_goes_on_and_ends_in_the_same_bytes(tmp_path, monkeypatch):
    clients, options = clients_of(TOKENS), {"tuning_options": LAST | {"dropout": 0.2}}
    run(clients, tmp_path / "whole", **options)
    calls = dying(monkeypatch, local, 4, RuntimeError("killed"))
    with pytest.raises(ClientFailure):
        run(clients, tmp_path / "resumed", **options)
    run(clients, tmp_path / "resumed", **options)
    assert len(calls) == 4 + 2
    for file in ("predictions.tsv", "model.safetensors"):
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_checkpoint_of_other_options_of_the_tuning_is_not_gone_on_with(tmp_path, monkeypatch):
    clients, calls = clients_of(TOKENS), dying(monkeypatch, local, 3, RuntimeError("killed"))
    with pytest.raises(ClientFailure):
        run(clients, tmp_path)
    run(clients, tmp_path, tuning_options=LAST | {"alpha": 32})  # the same shapes
    assert len(calls) == 4 + 4  # B was asked, too, before the round failed; then all again


@pytest.mark.parametrize("aggregation", ["local", "centralized"])
def test_a_killed_reference_goes_on_and_ends_in_the_same_bytes(aggregation, tmp_path, monkeypatch):
    clients = clients_of(TOKENS)
    run(clients, tmp_path / "whole", aggregation=aggregation)
    calls = dying(monkeypatch, task, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(clients, tmp_path / "resumed", aggregation=aggregation)
    run(clients, tmp_path / "resumed", aggregation=aggregation)
    assert len(calls) == 2 + (3 if aggregation == "local" else 1)
    for file in ("predictions.tsv", "model.safetensors"):
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert not list((tmp_path / "resumed").glob("*checkpoint*"))


def test_tokens_of_another_encoder_or_block_are_refused(tmp_path):
    for change in ({"weights": "w.pth sha256:0"}, {"cut": "block3"}):
        clients = {name: replace(c, origin=ORIGIN | change) for name, c in clients_of(TOKENS).items()}
        with pytest.raises(StudyError, match=r"cohort A: its tokens are of .* training goes on at block11"):
            run(clients, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_stopped_after_memory_ran_out_ends_as_the_undisturbed_one(tmp_path, monkeypatch):
    """With dropout, whose draws depend on the parts of a batch: the parts are remembered, and a failed pass leaves no trace."""
    from fedbrain.models.classifier import Classifier

    clients, options = clients_of(TOKENS, train=4), {"tuning_options": LAST | {"dropout": 0.3}}
    options["training"] = TRAINING | {"batch_size": 4}
    forward = Classifier.forward

    def small(self, x):
        result = forward(self, x)
        if self.training and len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")  # after the network has drawn its random numbers
        return result

    monkeypatch.setattr(Classifier, "forward", small)
    run(clients, tmp_path / "whole", **options)
    run(clients, tmp_path / "parts", **(options | {"training": options["training"] | {"micro_batch": 2}}))
    dying(monkeypatch, local, 3, RuntimeError("killed"))
    with pytest.raises(ClientFailure):
        run(clients, tmp_path / "resumed", **options)
    run(clients, tmp_path / "resumed", **options)
    for other in ("resumed", "parts"):
        model = (tmp_path / other / "model.safetensors").read_bytes()
        assert model == (tmp_path / "whole" / "model.safetensors").read_bytes(), other


def test_scores_of_bfloat16_are_not_rounded_to_it(tmp_path):
    clients = {"A": replace(make_client("A", 2, 1, 40, shape=TOKENS), origin=ORIGIN)}
    run(clients, tmp_path, training=TRAINING | {"precision": "bfloat16"})
    scores = read_table(tmp_path / "predictions.tsv", PREDICTIONS)["score"]
    assert scores.nunique() == 40


def test_parts_of_a_batch_give_the_step_of_the_whole_batch(tmp_path):
    clients = clients_of(TOKENS, train=4)
    models = []
    for name, micro in (("whole", None), ("parts", 1)):
        run(clients, tmp_path / name, training=TRAINING | {"rounds": 1, "batch_size": 4, "micro_batch": micro})
        models.append(load_file(tmp_path / name / "model.safetensors"))
    for name, tensor in models[0].items():
        np.testing.assert_allclose(models[1][name], tensor, atol=2e-4)  # AdamW's first step is the sign of a gradient


def test_memory_that_runs_out_halves_the_batch_and_the_cell_ends_as_it_would_have(tmp_path, monkeypatch, caplog):
    from fedbrain.models.classifier import Classifier

    clients = clients_of(TOKENS, train=4)
    training = TRAINING | {"rounds": 1, "batch_size": 4}
    run(clients, tmp_path / "whole", training=training)
    forward = Classifier.forward

    def small(self, x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(Classifier, "forward", small)
    run(clients, tmp_path / "halved", training=training)
    assert (
        caplog.text.count("out of memory; going on with 2 scan(s) at a time") == 2
    )  # each client finds out for itself
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halved"))
    for name, tensor in a.items():
        np.testing.assert_allclose(b[name], tensor, atol=2e-4)


def test_bfloat16_trains_and_keeps_float32_in_what_travels(tmp_path):
    exact = run(clients_of(TOKENS), tmp_path / "a")
    rough = run(clients_of(TOKENS), tmp_path / "b", training=TRAINING | {"precision": "bfloat16"})
    assert exact["bytes_up"] == rough["bytes_up"]
    losses = [read_table(tmp_path / name / "rounds.tsv", ROUNDS)["loss"].to_numpy(float) for name in "ab"]
    np.testing.assert_allclose(*losses, rtol=0.05)
    assert (losses[0] != losses[1]).any()
    assert all(tensor.dtype == np.float32 for tensor in load_file(tmp_path / "b/model.safetensors").values())


@pytest.mark.parametrize("aggregation", ["fedavg", "fedce"])
def test_resnet18_federates_on_volumes_with_its_running_statistics(aggregation, tmp_path):
    clients = clients_of((1, 128, 128, 128))
    options = {"head": "resnet18", "head_options": {"downsample": 4}, "tuning_options": {}}
    summary = run(clients, tmp_path, tuning="full", aggregation=aggregation, **options)
    assert summary["parameters"] == {"trained": 33_161_026, "full": 33_161_026, "sent": 33_161_026}
    assert summary["weights"] == "none (trained from scratch)"
    tensors = load_file(tmp_path / "model.safetensors")
    running = [name for name in tensors if "running_var" in name]
    assert running
    assert all((tensors[name] >= 0).all() for name in running)
    assert not [name for name in tensors if "num_batches" in name]
    assert summary["bytes_up"] == 2 * 2 * 4 * sum(tensor.size for tensor in tensors.values())
    assert read_table(tmp_path / "predictions.tsv", PREDICTIONS)["score"].between(0, 1).all()


def test_class_centres_of_a_federation_are_those_of_the_pooled_scans(tmp_path):
    clients = clients_of((384, 2, 2, 2), train=5)
    options = {"head": "ncc", "tuning": "frozen", "tuning_options": {}, "training": TRAINING | {"rounds": 1}}
    summary = run(clients, tmp_path / "f", aggregation="simpleavg", **options)
    run(clients, tmp_path / "c", aggregation="centralized", **options)
    federated, central = (pd.read_csv(tmp_path / name / "predictions.tsv", sep="\t") for name in "fc")
    np.testing.assert_allclose(federated["score"], central["score"], rtol=1e-5)

    pooled = pool_clients(list(clients.values())).train
    centres = NearestClassCentre()
    centres.gather(pooled.x[torch.arange(len(pooled))].float(), pooled.y)
    scores = centres(clients["A"].test.x.float()).softmax(1)[:, 1]
    np.testing.assert_allclose(federated["score"][federated["cohort"] == "A"], scores, rtol=1e-5)
    assert summary["parameters"]["trained"] == 0
    assert summary["bytes_up"] == 2 * 4 * (2 * 384 + 2)  # sums and counts of two classes, once per client


def test_full_tuning_starts_from_volumes_and_sends_everything(tmp_path):
    clients = {"A": make_client("A", 1, 0, 1, shape=(1, 128, 128, 128))}
    summary = run(clients, tmp_path, tuning="full", tuning_options={}, training={"rounds": 1, "batch_size": 1})
    assert summary["cut"] == "volume"
    assert summary["bytes_up"] == 4 * (92_924_928 + 770)
    record = json.loads((tmp_path / "summary.json").read_text())
    assert record["weights"] == "random (seed 0)"


def test_weights_that_are_not_there_are_told_before_any_work(tmp_path):
    with pytest.raises(StudyError, match=r"no file|there is no file"):
        run(clients_of(TOKENS), tmp_path, source=EncoderSource("sam_med3d", str(tmp_path / "none.pth")))
    assert not list(tmp_path.iterdir())
