import json
import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from federation import dying
from safetensors.numpy import load_file
from small_clients import make_client

from fedbrain.errors import StudyError
from fedbrain.federated import apps, local
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.cell import train_cell
from fedbrain.federated.rounds import ClientFailure
from fedbrain.registry import REFERENCES, names
from fedbrain.tables import PREDICTIONS, ROUNDS, read_table

SHAPE = (384, 2, 2, 2)
TRAINING = {"rounds": 3, "batch_size": 4, "learning_rate": 0.01}
TABLES = {f"predictions{kind}{side}.tsv" for kind in ("", "_global") for side in ("", "_validation")}
FILES = {"rounds.tsv", *TABLES, "model.safetensors", "summary.json"}


@pytest.fixture
def clients():
    return {
        name: make_client(name, count, seed=k, shape=SHAPE, effect=0.1)
        for k, (name, count) in enumerate([("A", 9), ("B", 5)])
    }


def run(clients, folder, aggregation="fedavg", **options):
    settings = {"head": "linear", "tuning": "frozen", "training": TRAINING, "seed": 1} | options
    return train_cell(clients, aggregation=aggregation, folder=folder, **settings)


# Those that ask for three clients or for something that a linear head has not run in aggregation/, test_policies.py and
# test_personalised_cells.py.
OTHERS = ("krum", "multi_krum", "bulyan", "fedit", "flexlora", "fedper", "fedbn", "flop", "ditto", "fedavg_ft")
RULES = [name for name in names("aggregation") if name not in OTHERS and not build_rule(name).requires]


@pytest.mark.parametrize("aggregation", [*RULES, *REFERENCES])
def test_a_cell_writes_its_tables_model_and_summary(clients, tmp_path, aggregation):
    summary = run(clients, tmp_path, aggregation)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == FILES  # the checkpoint is gone
    assert summary == json.loads((tmp_path / "summary.json").read_text())

    predictions = read_table(tmp_path / "predictions.tsv", PREDICTIONS)
    expected = [(name, subject) for name in "AB" for subject in clients[name].test.subjects]
    assert list(zip(predictions["cohort"], predictions["subject"])) == expected
    assert predictions["score"].between(0, 1).all()
    assert predictions["label"].tolist() == [label for name in "AB" for label in clients[name].test.y.tolist()]

    rounds = read_table(tmp_path / "rounds.tsv", ROUNDS)
    members = ["pooled"] if aggregation == "centralized" else ["A", "B"]
    assert list(zip(rounds["round"], rounds["client"])) == [(n, name) for n in (1, 2, 3) for name in members]
    assert rounds["validation_loss"].notna().all()
    assert rounds["weight"].isna().all() == (aggregation in REFERENCES)
    down, up = rounds["bytes_down"].sum(), rounds["bytes_up"].sum()
    beside = 3 if aggregation == "scaffold" else 0  # rounds with controls as large as the model
    travelled = (2 * (4 + beside) * 3080, 2 * (3 + beside) * 3080)
    assert (down, up) == ((0, 0) if aggregation in REFERENCES else travelled)
    assert (summary["bytes_down"], summary["bytes_up"]) == (down, up)
    sent = 0 if aggregation in REFERENCES else 770
    assert summary["parameters"] == {"trained": 770, "full": 92_924_928 + 770, "sent": sent}
    largest = rounds.groupby("client")["peak_memory"].max().to_dict()
    assert summary["client_peak_memory"] == largest
    assert max(largest.values()) <= summary["peak_memory"]
    assert summary["compute_seconds"] == pytest.approx(rounds.groupby("client")["seconds"].sum().to_dict())
    assert summary["weights"] == "random"
    assert summary["clients"]["B"]["train"] == {"controls": 3, "cases": 2}

    tensors = load_file(tmp_path / "model.safetensors")
    prefixes = {"A/", "B/"} if aggregation == "local" else {""}
    assert set(tensors) == {f"{prefix}head.classify.{name}" for prefix in prefixes for name in ("weight", "bias")}
    # The model that was written is the one that made the predictions.
    prefix = "B/" if aggregation == "local" else ""
    weight, bias = tensors[f"{prefix}head.classify.weight"], tensors[f"{prefix}head.classify.bias"]
    logits = clients["B"].test.x.float().mean((2, 3, 4)).numpy() @ weight.T + bias
    scores = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    np.testing.assert_allclose(predictions["score"][predictions["cohort"] == "B"].astype(float), scores, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["fedavg", "local"])
def test_validation_scans_are_predicted_by_the_model_of_the_chosen_round(clients, tmp_path, aggregation):
    summary = run(clients, tmp_path, aggregation)
    predictions = read_table(tmp_path / "predictions_validation.tsv", PREDICTIONS)
    expected = [(name, subject) for name in "AB" for subject in clients[name].validation.subjects]
    assert list(zip(predictions["cohort"], predictions["subject"])) == expected
    rounds = read_table(tmp_path / "rounds.tsv", ROUNDS)
    for name, own in predictions.groupby("cohort"):
        best = summary["best_round"].get(name, summary["best_round"].get("global"))
        recorded = rounds[(rounds["client"] == name) & (rounds["round"] == best)]["validation_loss"].item()
        of_label = np.where(own["label"] == 1, own["score"], 1 - own["score"]).astype(float)
        assert -np.log(of_label).mean() == pytest.approx(recorded, rel=1e-5)


@pytest.mark.parametrize("aggregation", ["fedce", "centralized", "local"])
def test_same_seed_same_bytes(clients, tmp_path, aggregation):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(ord(folder))  # what ran before must not matter
        run(dict(reversed(clients.items())) if folder == "b" else clients, tmp_path / folder, aggregation, seed=seed)
    for file in ("predictions.tsv", "model.safetensors"):
        first, again, other = ((tmp_path / folder / file).read_bytes() for folder in "abc")
        assert first == again
        assert first != other
    tables = (read_table(tmp_path / folder / "rounds.tsv", ROUNDS) for folder in "ab")
    first, again = (table.drop(columns=["seconds", "peak_memory"]) for table in tables)
    pd.testing.assert_frame_equal(first, again, check_exact=True)


@pytest.mark.parametrize("aggregation", ["fedavg", "fedce", "rate_my_lora", "centralized", "local"])
def test_test_scans_have_no_part_in_anything_but_the_predictions(clients, tmp_path, aggregation):
    turned = {name: replace(client, test=replace(client.test, y=1 - client.test.y)) for name, client in clients.items()}
    one, two = run(clients, tmp_path / "a", aggregation), run(turned, tmp_path / "b", aggregation)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert one["best_round"] == two["best_round"]
    tables = [read_table(tmp_path / folder / "predictions.tsv", PREDICTIONS) for folder in "ab"]
    assert (tables[0]["label"] == 1 - tables[1]["label"]).all()
    pd.testing.assert_frame_equal(*(table.drop(columns="label") for table in tables), check_exact=True)


@pytest.mark.parametrize("aggregation", ["fedavg", "local", "centralized"])
def test_training_is_not_even_given_the_test_scans(clients, tmp_path, monkeypatch, aggregation):
    from fedbrain.federated import cell

    given = []

    def noted(data, device):
        given.append(len(data.test))
        return moved(data, device)

    moved = cell.ClientData.to
    monkeypatch.setattr(cell.ClientData, "to", noted)
    run(clients, tmp_path, aggregation)
    assert given
    assert set(given) == {0}


def test_one_client_alone_is_a_federation_of_one(clients, tmp_path):
    only = {"B": clients["B"]}
    run(only, tmp_path / "local", "local")
    run(only, tmp_path / "fedavg", "fedavg")
    alone, federated = (pd.read_csv(tmp_path / name / "predictions.tsv", sep="\t") for name in ("local", "fedavg"))
    pd.testing.assert_frame_equal(alone, federated, check_exact=True)


def test_local_chooses_each_clients_round_by_its_own_validation(clients, tmp_path):
    summary = run(clients, tmp_path, "local", training=TRAINING | {"learning_rate": 0.5, "rounds": 6})
    rounds = read_table(tmp_path / "rounds.tsv", ROUNDS)
    for name, best in summary["best_round"].items():
        own = rounds[rounds["client"] == name].reset_index(drop=True)
        assert best == own["round"][own["validation_loss"].argmin()]


def test_a_killed_cell_goes_on_from_its_checkpoint(clients, tmp_path, monkeypatch):
    run(clients, tmp_path / "whole", "fedce")
    calls = dying(monkeypatch, local, 4, RuntimeError("killed"))
    with pytest.raises(ClientFailure, match="client B: RuntimeError: killed"):
        run(clients, tmp_path / "resumed", "fedce")
    assert sorted(path.name for path in (tmp_path / "resumed").iterdir()) == ["checkpoint.safetensors", "clients"]
    (tmp_path / "resumed/.123.rounds.tsv").touch()  # a kill in the middle of a file leaves this
    run(clients, tmp_path / "resumed", "fedce")
    assert len(calls) == 4 + 4  # rounds 2 and 3 of two clients
    assert {path.name for path in (tmp_path / "resumed").iterdir() if path.is_file()} == FILES
    for file in ("predictions.tsv", "model.safetensors"):
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def exchange_sides(client):
    """The first training scan and the first test scan change places; all counts stay."""

    def with_first(part, other):
        firsts = {
            name: getattr(other, name)[:1] + getattr(part, name)[1:] for name in ("subjects", "sessions", "scans")
        }
        tensors = {name: torch.cat([getattr(other, name)[:1], getattr(part, name)[1:]]) for name in "xy"}
        return replace(part, **tensors, **firsts)

    return replace(client, train=with_first(client.train, client.test), test=with_first(client.test, client.train))


@pytest.mark.parametrize(
    ("change", "options", "rounds"),
    [
        (lambda client: client, {}, [2, 3]),
        (exchange_sides, {}, [1, 2, 3]),
        (lambda client: replace(client, train=replace(client.train, y=1 - client.train.y)), {}, [1, 2, 3]),
        (lambda client: replace(client, origin=client.origin | {"encoder": "other"}), {}, [1, 2, 3]),
        (lambda client: replace(client, fingerprint="other"), {}, [1, 2, 3]),
        (lambda client: client, {"code": "two"}, [1, 2, 3]),
        (lambda client: client, {"seed": 2}, [1, 2, 3]),
    ],
    ids=["nothing", "sides", "labels", "encoder", "volumes", "code", "seed"],
)
def test_a_checkpoint_is_used_only_where_nothing_has_changed(clients, tmp_path, monkeypatch, change, options, rounds):
    drawn = []
    dying(monkeypatch, local, 4, RuntimeError("killed"))
    with pytest.raises(ClientFailure, match="killed"):
        run(clients, tmp_path, "fedavg", code="one")

    generator = apps.round_generator
    monkeypatch.setattr(apps, "round_generator", lambda *keys: drawn.append(keys[1:]) or generator(*keys))
    run(clients | {"B": change(clients["B"])}, tmp_path, "fedavg", **({"code": "one"} | options))
    assert drawn == [(name, number) for number in rounds for name in "AB"]


@pytest.mark.parametrize("aggregation", ["fedce", "rate_my_lora", "local", "centralized"])
def test_odd_clients_are_words_in_the_summary_and_no_crash(tmp_path, aggregation):
    clients = {
        "A": make_client("A", shape=SHAPE),
        "one": make_client("one", train=4, labels=[1] * 4, validation=1, shape=SHAPE, seed=1),
        "none": replace(make_client("none", train=0, validation=0, shape=SHAPE, seed=2), absent=7),
        "untested": make_client("untested", test=0, shape=SHAPE, seed=3),
    }
    summary = run(clients, tmp_path, aggregation)
    texts = "\n".join(summary["warnings"])
    assert "one: train scans of one class only (0 controls, 4 cases)" in texts
    assert "one: validation scans of one class only (1 controls, 0 cases)" in texts
    assert "none: 7 scan(s) without an embedding" in texts
    assert "none: no train scans" in texts
    assert "untested: no test scans: no predictions" in texts
    predictions = read_table(tmp_path / "predictions.tsv", PREDICTIONS)
    expected = {"A", "one"} | ({"none"} if aggregation != "local" else set())
    assert set(predictions["cohort"]) == expected


def test_nobody_to_train_is_an_error_of_the_study(tmp_path):
    with pytest.raises(StudyError, match="no client has training scans"):
        run({"A": make_client("A", train=0, shape=SHAPE)}, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "linaer"}, "did you mean linear"),
        ({"tuning": "full-time"}, "unknown tuning"),
        ({"aggregation": "fedavgg"}, "did you mean fedavg"),
        ({"aggregation": "local", "aggregation_options": {"version": "2.3"}}, "local takes no options"),
        ({"training": {"epochs": 3}}, "unknown option 'epochs'"),
    ],
)
def test_wrong_settings_are_told_before_any_work(clients, tmp_path, options, message):
    with pytest.raises(StudyError, match=message):
        run(clients, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_subject_ids_stand_in_the_predictions_alone(clients, tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        run(clients, tmp_path, "fedce")
    ids = [scan for client in clients.values() for side in (client.train, client.test) for scan in side.subjects]
    for text in (caplog.text, (tmp_path / "rounds.tsv").read_text(), (tmp_path / "summary.json").read_text()):
        assert not [subject for subject in ids if subject in text]


@pytest.mark.parametrize("head", ["conv_s", "conv_l"])
def test_the_convolutional_heads_federate(head, tmp_path):
    clients = {
        "A": make_client("A", 2, 2, 2, shape=(384, 4, 4, 4)),
        "B": make_client("B", 1, 0, 1, shape=(384, 4, 4, 4)),
    }
    summary = run(clients, tmp_path, "fedavg", head=head, training={"rounds": 1})
    assert summary["bytes_up"] == 2 * 4 * summary["parameters"]["trained"]
