"""Personalised models: what stays with a client never travels, and the best round's is the one that is kept."""

import warnings
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from federation import OPTIONS, SEED, as_bytes, failing, federate, timeless
from peft import LoraConfig, inject_adapter_in_model
from safetensors.numpy import load_file
from small_clients import FEATURES, make_client
from torch import nn

from fedbrain.errors import StudyError
from fedbrain.federated import orthogonality
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.cell import train_cell
from fedbrain.federated.kept import Kept
from fedbrain.federated.rounds import ClientFailure
from fedbrain.federated.sharing import Sharing
from fedbrain.federated.task import evaluate, round_generator, train
from fedbrain.models.classifier import build_classifier
from fedbrain.tables import PREDICTIONS, ROUNDS, read_table


class SmallClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(FEATURES, 5)
        self.norm = nn.BatchNorm1d(5)
        hidden, classify = nn.Linear(5, 3), nn.Linear(3, 2)
        self.head = nn.Sequential(OrderedDict(hidden=hidden, tanh=nn.Tanh(), classify=classify))

    def forward(self, x):
        return self.head(self.norm(self.body(x)))


def build_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return SmallClassifier()


def build_dual_model():
    model = build_model()
    model.norm = nn.GroupNorm(1, 5)  # frozen, and so without statistics that training would move
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):  # peft's, of a second adapter
        torch.manual_seed(1)
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["body"])
        inject_adapter_in_model(config, model)
        inject_adapter_in_model(config, model, adapter_name="local")
    model.body.set_adapter(["default", "local"])
    model.head.requires_grad_(True)
    return model


HEAD = {f"head.{layer}.{kind}" for layer in ("hidden", "classify") for kind in ("weight", "bias")}
LAST = {"head.classify.weight", "head.classify.bias"}
NORM = {f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
LOCAL = {f"body.lora_{factor}.local.weight" for factor in "AB"}
POLICIES = {
    "fedper": (build_rule("fedper"), build_model, HEAD),
    "fedbn": (build_rule("fedbn"), build_model, NORM),
    "flop": (build_rule("flop"), build_model, LAST),
    "fedce with private norms": (build_rule("fedce", private=["norm"]), build_model, NORM),
    "scaffold with a private head": (build_rule("scaffold", private=["head"], learning_rate=0.1), build_model, HEAD),
    "dual": (build_rule("med_dual_lora"), build_dual_model, LOCAL),
    "dual, local head": (build_rule("med_dual_lora", head="local"), build_dual_model, LOCAL | HEAD),
    "dual, alternating": (build_rule("med_dual_lora", training="alternating"), build_dual_model, LOCAL),
    "opal": (build_rule("fedopal"), build_dual_model, LOCAL),
    "opal, tokens": (build_rule("fedopal", penalty="representation"), build_dual_model, LOCAL),
    "ditto": (build_rule("ditto"), build_model, set()),
}
by_policy = pytest.mark.parametrize(("rule", "build", "private"), POLICIES.values(), ids=POLICIES)
FIVE = replace(OPTIONS, rounds=5)


@pytest.fixture
def misled(three_clients):
    """The more they learn, the worse they are on validation scans of the opposite labels: an early round is the best."""
    return {n: replace(c, validation=replace(c.validation, y=1 - c.validation.y)) for n, c in three_clients.items()}


def records(messages):
    return [record for message in messages for record in message.content.array_records.values()]


@by_policy
def test_what_is_private_is_in_no_message(three_clients, rule, build, private, monkeypatch):
    """Neither by name, nor any array that a client ever kept for itself by its values."""
    own, keep = [], Kept.keep

    def noted(self, round, groups, **options):
        own.extend(array for group in ("private", "personal") for array in groups.get(group, {}).values())
        keep(self, round, groups, **options)

    monkeypatch.setattr(Kept, "keep", noted)
    _, grid = federate(three_clients, rule, build_model=build)
    sent = records(grid.down) + records(grid.up)
    assert len(own) == 3 * OPTIONS.rounds * (len(private) or 10)  # ditto: all ten tensors
    assert not [name for record in sent for name in record if name in private]
    values = {array.numpy().tobytes() for record in sent for array in record.values()}
    assert len(values) > 20
    assert not [array for array in own if array.tobytes() in values]


@by_policy
def test_a_clients_tensors_of_the_best_round_are_kept(misled, rule, build, private):
    """With them and the best round's shared tensors its validation values come out again, to the bit."""
    result, grid = federate(misled, rule, FIVE, build_model=build)
    assert result.best_round < FIVE.rounds
    for row in result.rows:
        if row["round"] == result.best_round:
            kept = grid.kept[row["client"]].after(result.best_round)
            own = {**kept.get("private", {}), **kept.get("personal", {})}
            assert set(own) == (private or set(result.tensors))
            model = build()
            state = {name: torch.tensor(array) for name, array in {**result.tensors, **own}.items()}
            model.load_state_dict(state, strict=False)
            assert evaluate(model, misled[row["client"]].validation, FIVE).loss == row["validation_loss"]


@by_policy
def test_a_run_that_ended_early_goes_on_and_ends_in_the_same_bytes(misled, rule, build, private, tmp_path):
    whole, whole_grid = federate(misled, rule, FIVE, build_model=build)
    again = {"checkpoint": tmp_path / "c.safetensors", "identity": "run", "folder": tmp_path, "build_model": build}
    with pytest.raises(ClientFailure):
        # A and B have done the fourth round and kept what came of it; the server has not.
        federate(misled, rule, FIVE, load=failing(misled, "C", {4}), **again)
    resumed, grid = federate(misled, rule, FIVE, **again)
    assert grid.trained() == dict.fromkeys("ABC", [4, 5])
    assert as_bytes(resumed.tensors) == as_bytes(whole.tensors)
    assert timeless(resumed.rows) == timeless(whole.rows)
    for name, kept in grid.kept.items():
        for number in (whole.best_round, FIVE.rounds):
            ours, theirs = kept.after(number), whole_grid.kept[name].after(number)
            assert {group: as_bytes(a) for group, a in ours.items()} == {
                group: as_bytes(a) for group, a in theirs.items()
            }


def test_fedopal_with_strength_0_is_med_dual_lora_to_the_bit(three_clients):
    for training in ("joint", "alternating"):
        for penalty in ("weights_a", "representation"):
            rules = [build_rule("med_dual_lora", training=training)]
            rules.append(build_rule("fedopal", training=training, strength=0, penalty=penalty))
            (ours, grid), (theirs, other) = (
                federate(three_clients, rule, build_model=build_dual_model) for rule in rules
            )
            assert as_bytes(ours.tensors) == as_bytes(theirs.tensors)
            for name, kept in grid.kept.items():
                assert as_bytes(kept.after(4)["private"]) == as_bytes(other.kept[name].after(4)["private"])


@pytest.mark.parametrize("penalty", ["weights_a", "weights_b", "update", "representation"])
def test_a_penalty_brings_the_pairs_apart(three_clients, penalty):
    """Of pairs that start alike, but for a little: exactly alike they would feel the same gradient for ever."""

    def build_alike():
        model = build_dual_model()
        for factors in (model.body.lora_A, model.body.lora_B):
            start = factors["default"].weight.data + torch.full_like(factors["default"].weight.data, 0.1)
            factors["local"].weight.data = start + 0.3 * factors["local"].weight.data
            factors["default"].weight.data = start
        return model

    overlaps, client = [], three_clients["A"]
    for strength in (0, 5.0):
        rule = build_rule("fedopal", strength=strength, penalty=penalty)
        result, grid = federate({"A": client}, rule, replace(OPTIONS, rounds=6), build_model=build_alike)
        model = build_alike()
        own = grid.kept["A"].after(result.best_round)["private"]
        model.load_state_dict({n: torch.tensor(a) for n, a in {**result.tensors, **own}.items()}, strict=False)
        with orthogonality.Orthogonality(model, penalty).watched() as overlap:
            model.eval()(client.train.x.float())
            overlaps.append(overlap().item())
    assert overlaps[0] > 0.1
    assert overlaps[1] < 0.5 * overlaps[0]


def test_overlaps_are_those_of_dense_matrices():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    one, other, x = (draw(3, 7), draw(5, 3)), (draw(2, 7), draw(5, 2)), draw(4, 6, 7)
    u, v = (b @ a for a, b in (one, other))
    cosine = nn.functional.cosine_similarity(u.flatten(), v.flatten(), dim=0)
    torch.testing.assert_close(orthogonality.overlap_of_updates(one, other), cosine**2)
    tokens = nn.functional.cosine_similarity(x @ u.T, x @ v.T, dim=-1)
    torch.testing.assert_close(orthogonality.overlap_of_outputs(one, other, x), (tokens**2).mean())
    for place, overlap in ((0, orthogonality.overlap_of_a), (1, orthogonality.overlap_of_b)):
        p, q = (pair[place] if place == 0 else pair[place].T for pair in (one, other))
        expected = torch.linalg.matrix_norm(p @ q.T) / torch.linalg.matrix_norm(p) / torch.linalg.matrix_norm(q)
        torch.testing.assert_close(overlap(one, other), expected**2)
    # At the start B is 0: nothing in common, and no gradient that is not a number.
    zero = (one[0].requires_grad_(), torch.zeros(5, 3, dtype=torch.float64, requires_grad=True))
    for overlap in (orthogonality.overlap_of_b, orthogonality.overlap_of_updates):
        value = overlap(zero, other)
        value.backward()
        assert value == 0
        assert zero[1].grad.isfinite().all()


def test_alternating_trains_what_stays_and_then_what_is_shared(three_clients):
    """By hand: two plain trainings, each with the other pair at rest."""
    client, options = three_clients["C"], replace(OPTIONS, rounds=1)
    rule = build_rule("med_dual_lora", training="alternating")
    result, grid = federate({"C": client}, rule, options, build_model=build_dual_model)
    model, generator = build_dual_model(), round_generator(SEED, "C", 1)
    trained = dict(model.named_parameters())
    for names in (LOCAL, {"body.lora_A.default.weight", "body.lora_B.default.weight", *HEAD}):
        for name, parameter in trained.items():
            parameter.requires_grad_(name in names)
        train(model, client.train, options, generator, "cpu")
    state = model.state_dict()
    both = {**result.tensors, **grid.kept["C"].after(1)["private"]}
    assert as_bytes(both) == as_bytes({name: state[name].numpy() for name in both})


def test_dittos_shared_model_is_fedavgs_and_the_own_one_a_loop_written_by_hand(three_clients):
    strength = 2.0
    ours, grid = federate(three_clients, build_rule("ditto", strength=strength), build_model=build_model)
    theirs, plain = federate(three_clients, "fedavg", build_model=build_model)
    sent = [[array.numpy().tobytes() for record in records(g.up) for array in record.values()] for g in (grid, plain)]
    assert sent[0] == sent[1]

    received = [m.content["arrays"] for m in grid.down if m.metadata.message_type == "train"][::3]
    client, own = three_clients["B"], None
    for number, record in enumerate(received, start=1):
        world = {name: torch.tensor(array.numpy()) for name, array in record.items()}
        model, generator = build_model(), round_generator(SEED, "B", number)
        model.load_state_dict(world, strict=False)
        train(model, client.train, OPTIONS, generator, "cpu")  # the shared part, for its draws
        model.load_state_dict(own or world, strict=False)

        def hold(model=model, world=world):
            for name, parameter in model.named_parameters():
                parameter.grad += strength * (parameter.detach() - world[name])

        train(model, client.train, OPTIONS, generator, "cpu", before_step=hold)
        own = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in world}
    kept = grid.kept["B"].after(OPTIONS.rounds)["personal"]
    assert as_bytes(kept) == as_bytes({name: tensor.numpy() for name, tensor in own.items()})


def test_norm_is_every_kind_of_normalization_and_nothing_else():
    model = build_classifier("conv_s")
    private = Sharing.of(model, build_rule("fedbn")).select(model.state_dict(), "private")
    assert private == [f"head.convolve.{place}.{kind}" for place in (1, 4, 7) for kind in ("weight", "bias")]
    with pytest.raises(StudyError, match="nothing called 'norm'; use a head or a tuning"):
        Sharing.of(build_classifier("linear"), build_rule("fedbn"))
    with pytest.raises(StudyError, match="leaves nothing that travels"):
        Sharing.of(build_classifier("linear"), build_rule("fedper"))


@pytest.mark.parametrize("aggregation", ["flop", "ditto"])
def test_predictions_are_of_each_clients_own_model(aggregation, tmp_path):
    shape = (384, 2, 2, 2)
    clients = {name: make_client(name, 4, 2, 3, seed=k, shape=shape) for k, name in enumerate("AB")}
    clients["C"] = make_client("C", 0, 0, 3, seed=9, shape=shape)
    summary = train_cell(
        clients,
        head="conv_s",
        tuning="frozen",
        aggregation=aggregation,
        training={"rounds": 2, "batch_size": 4},
        folder=tmp_path,
    )
    tensors, predictions = (
        load_file(tmp_path / "model.safetensors"),
        read_table(tmp_path / "predictions.tsv", PREDICTIONS),
    )
    assert set(predictions["cohort"]) == {"A", "B"}
    instead = {"flop": "no predictions", "ditto": "predictions by the global model only"}[aggregation]
    assert f"C: no train scans: no model of its own, {instead}" in summary["warnings"]
    shared = {name: array for name, array in tensors.items() if "/" not in name}
    own = {name: array for name, array in tensors.items() if name.startswith("B/")}
    assert {name.removeprefix("B/") for name in own} == (LAST if aggregation == "flop" else set(shared))
    assert not np.array_equal(own["B/head.classify.weight"], tensors["A/head.classify.weight"])
    model = build_classifier("conv_s")
    state = {name.removeprefix("B/"): torch.tensor(array) for name, array in {**shared, **own}.items()}
    model.load_state_dict(state)
    scores = model.eval()(clients["B"].test.x.float()).softmax(1)[:, 1].detach()
    np.testing.assert_allclose(predictions["score"][predictions["cohort"] == "B"].astype(float), scores, atol=1e-6)
    rounds = read_table(tmp_path / "rounds.tsv", ROUNDS)
    assert not (tmp_path / "clients").exists()
    assert rounds["bytes_up"].nunique() == 1


def test_options_are_checked():
    for name, options, message in (
        ("med_dual_lora", {"training": "both"}, "training must be one of joint, alternating"),
        ("med_dual_lora", {"private": ["head"]}, "private must name local"),
        ("fedopal", {"penalty": "b"}, "fedopal: penalty must be one of"),
        ("fedopal", {"strength": -1}, "fedopal: strength must be a number from 0"),
        ("ditto", {"private": ["head"]}, "leave private out"),
    ):
        with pytest.raises(StudyError, match=message):
            build_rule(name, **options)


def test_the_penalty_on_outputs_takes_tokens_in_bfloat16():
    """As they enter proj and lin2 under autocast; the penalty is that of the same tokens in float32."""
    torch.manual_seed(0)
    one, other = ((torch.randn(2, 6, requires_grad=True), torch.randn(4, 2)) for _ in range(2))
    x = torch.randn(3, 5, 6).bfloat16()
    value = orthogonality.overlap_of_outputs(one, other, x)
    torch.testing.assert_close(value, orthogonality.overlap_of_outputs(one, other, x.float()), rtol=0, atol=0)
    assert value.dtype == torch.float32
