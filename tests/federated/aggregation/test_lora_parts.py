"""Rules that train or send a part of an adapter, or change the frozen weight: what travels, and what comes out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from federation import OPTIONS, RecordingGrid, as_bytes, failing, federate
from peft import LoraConfig, inject_adapter_in_model
from small_clients import build_small_model, make_client
from torch import nn

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.aggregation.averages import FedAvg
from fedbrain.federated.aggregation.rule import Update, merge
from fedbrain.federated.sharing import Sharing, adapted_layers
from fedbrain.models.adapters import FusedProjection

A, B, BASE = "0.lora_A.default.weight", "0.lora_B.default.weight", "0.base_layer.weight"
SCALE = 2.0


def build_adapted_model():
    model = build_small_model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LoraConfig(r=3, lora_alpha=3 * SCALE, target_modules=["0"])
        inject_adapter_in_model(config, model)
    model[2].requires_grad_(True)
    return model


@pytest.fixture
def clients(three_clients):
    """Without validation scans, so that the last round is the one that is kept."""
    return {
        name: replace(c, validation=make_client(name, validation=0).validation) for name, c in three_clients.items()
    }


def run(clients, rule, rounds=3, **options):
    return federate(clients, rule, replace(OPTIONS, rounds=rounds), build_model=build_adapted_model, **options)


def sent(messages, kind="arrays"):
    """Names in each message that has such a record."""
    return [set(message.content[kind]) for message in messages if kind in message.content]


def product(arrays):
    return SCALE * arrays[B].astype(np.float64) @ arrays[A]


def trained_models(grid, number):
    """By client what it sent in one round, from the messages alone."""
    replies = [reply for reply in grid.up if "arrays" in reply.content]
    each = len(grid.contexts)
    names = {node: context.node_config["client"] for node, context in grid.contexts.items()}
    return {
        names[reply.metadata.src_node_id]: {name: array.numpy() for name, array in reply.content["arrays"].items()}
        for reply in replies[each * (number - 1) : each * number]
    }


def test_ffa_lora_never_sends_nor_moves_a(clients):
    result, grid = run(clients, "ffa_lora")
    names = {B, "2.weight", "2.bias"}
    assert all(found == names for found in sent(grid.down) + sent(grid.up))
    assert set(result.tensors) == names
    # With A the same for all, the mean of B is the mean of the products: one round equals the product rule's.
    model = build_adapted_model()
    assert not model[0].lora_B["default"].weight.any()
    assert np.abs(result.tensors[B]).max() > 0


def test_ffa_lora_is_training_with_a_frozen(clients):
    """One client: the same bytes as a plain run of a model whose A requires no gradient."""

    def frozen_a():
        model = build_adapted_model()
        model[0].lora_A["default"].weight.requires_grad_(False)
        return model

    only = {"C": clients["C"]}
    ours, _ = run(only, "ffa_lora")
    theirs, _ = federate(only, "fedavg", replace(OPTIONS, rounds=3), build_model=frozen_a)
    assert as_bytes(ours.tensors) == as_bytes(theirs.tensors)


def test_fedsa_lora_sends_a_and_keeps_b(clients):
    result, grid = run(clients, "fedsa_lora")
    names = {A, "2.weight", "2.bias"}
    assert all(found == names for found in sent(grid.down) + sent(grid.up))
    assert set(result.tensors) == names
    own = [kept.after(3)["private"][B] for kept in grid.kept.values()]
    assert all(np.abs(b).max() > 0 for b in own)
    assert not np.array_equal(own[0], own[1])


def test_rolora_sends_b_and_a_by_turns_and_averages_exactly(clients):
    result, grid = run(clients, "rolora", rounds=4)
    ups = sent(grid.up)
    turns = [{B, "2.weight", "2.bias"}, {A, "2.weight", "2.bias"}] * 2
    assert [ups[3 * k : 3 * k + 3] for k in range(4)] == [[turn] * 3 for turn in turns]
    down = [m for m in grid.down if m.metadata.message_type != "query"]
    received = [{name: array.numpy() for name, array in m.content["arrays"].items()} for m in down[::3]]
    assert received[0][A].tobytes() == received[1][A].tobytes() != received[2][A].tobytes()
    assert received[1][B].tobytes() == received[2][B].tobytes() != received[3][B].tobytes()
    # The mean of the clients' products is the product of the next round's factors.
    shares = {name: len(client.train) / 39 for name, client in clients.items()}
    for number in range(1, 5):
        models = trained_models(grid, number)
        mean = sum(shares[name] * product(received[number - 1] | model) for name, model in models.items())
        np.testing.assert_allclose(product(received[number]), mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", ["fedex_lora", "flora", "rate_my_lora"])
def test_after_each_round_the_layer_is_the_mean_of_the_clients_layers(clients, rule):
    """In dense matrices: W + s B A of the server is sum_k p_k (W + s B_k A_k), where averaging apart errs."""
    shares = {name: len(client.train) / 39 for name, client in clients.items()}
    base = build_adapted_model()[0].base_layer.weight.detach().numpy()
    for rounds in (1, 2, 3):
        result, grid = run(clients, rule, rounds=rounds)
        models = trained_models(grid, rounds)
        mean = base + sum(shares[name] * product(model) for name, model in models.items())
        ours = result.tensors[BASE] + product(result.tensors)
        np.testing.assert_allclose(ours, mean, rtol=0, atol=2e-6)
        base = result.tensors[BASE]
        apart, _ = run(clients, "fedit", rounds=rounds)
        if rounds == 1:
            biased = build_adapted_model()[0].base_layer.weight.detach().numpy() + product(apart.tensors)
            assert np.abs(biased - mean).max() > 1e-4


def test_flora_starts_each_round_with_new_adapters(clients):
    _, grid = run(clients, "flora")
    down = [m for m in grid.down if "arrays" in m.content][::3]
    a = [message.content["arrays"][A].numpy() for message in down]
    assert len({array.tobytes() for array in a}) == 4
    assert all(np.abs(array).max() <= 1 / np.sqrt(6) for array in a)
    assert not any(message.content["arrays"][B].numpy().any() for message in down)


@pytest.mark.parametrize(("rule", "rank"), [("fedex_lora", 6), ("flora", 9), ("rate_my_lora", 9)])
def test_the_frozen_weight_goes_down_as_factors_and_all_hold_the_same(clients, rule, rank):
    result, grid = run(clients, rule)
    assert not [found for found in sent(grid.down) + sent(grid.up) if BASE in found]
    factors = [m.content["merge"] for m in grid.down if "merge" in m.content]
    assert len(factors) == 9  # not before the first round; after each of three to three clients
    assert {(f[A].shape, f[B].shape) for f in factors} == {((rank, 6), (4, rank))}
    adapters, head = 4 * (3 * 6 + 4 * 3), 4 * (2 * 4 + 2)
    down = [row["bytes_down"] for row in result.rows]
    assert down[:3] == [adapters + head] * 3
    assert down[3:6] == [adapters + head + 4 * rank * (6 + 4)] * 3
    # The clients' weights before the last change, and that change, are the server's weights to the bit.
    layer = adapted_layers(build_adapted_model())[A]
    for kept in grid.kept.values():
        base = kept.after(3)["merged"][BASE]
        assert (
            merge(base, layer.rows, factors[-1][A].numpy(), factors[-1][B].numpy()).tobytes()
            == result.tensors[BASE].tobytes()
        )


@pytest.mark.parametrize("rule", ["fedex_lora", "flora", "rate_my_lora"])
def test_a_client_that_missed_a_round_gets_the_whole_weight(clients, rule):
    options = replace(OPTIONS, rounds=4, quorum=2)
    load = failing(clients, "B", {2})
    result, grid = federate(clients, rule, options, build_model=build_adapted_model, load=load)
    assert [row["status"] for row in result.rows if row["client"] == "B"] == ["ok", "failed", "ok", "ok"]
    node = next(node for node, context in grid.contexts.items() if context.node_config["client"] == "B")
    own = [m for m in grid.down if m.metadata.dst_node_id == node and "arrays" in m.content]
    assert [BASE in message.content["arrays"] for message in own] == [False, False, True, False, False]
    assert ["merge" in message.content for message in own] == [False, True, False, True, True]
    bases = [kept.after(4)["merged"][BASE].tobytes() for kept in grid.kept.values()]
    assert bases[0] == bases[1] == bases[2]


def test_adapters_of_a_third_of_a_fused_projection_stand_beside_its_rows():
    """What the adapter adds to the output is what its merged product adds to the fused weight."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(FusedProjection(nn.Linear(5, 15), ["q", "v"]))
        config = LoraConfig(r=2, lora_alpha=3, target_modules=["0.parts.q", "0.parts.v"], init_lora_weights=False)
        inject_adapter_in_model(config, model)
        x = torch.randn(4, 5)
    expected, state = model(x).detach(), model.state_dict()
    layers = adapted_layers(model)
    assert {layer.rows for layer in layers.values()} == {(0, 5), (10, 15)}
    weight = state["0.fused.weight"].numpy()
    for a, layer in layers.items():
        assert layer.weight == "0.fused.weight"
        weight = merge(weight, layer.rows, state[a].numpy(), layer.scale * state[layer.b].numpy())
    ours = x @ torch.tensor(weight).T + state["0.fused.bias"]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_a_client_of_lower_rank_trains_and_sends_no_more_than_that(clients):
    result, grid = run(clients, build_rule("flexlora", ranks={"B": 1}))
    names = {node: context.node_config["client"] for node, context in grid.contexts.items()}
    for message in grid.down + [reply for reply in grid.up if "arrays" in reply.content]:
        if "arrays" not in message.content:
            continue
        node = message.metadata.dst_node_id if message.metadata.dst_node_id in names else message.metadata.src_node_id
        rank = 1 if names[node] == "B" else 3
        assert message.content["arrays"][A].shape == (rank, 6)
        assert message.content["arrays"][B].shape == (4, rank)
    assert result.tensors[A].shape == (3, 6)
    rows = {row["client"]: row["bytes_up"] for row in result.rows}
    assert rows["A"] - rows["B"] == 4 * 2 * (6 + 4)


def test_an_adapter_filled_up_with_zeros_is_one_of_lower_rank(clients):
    """One client of rank 1: the same run as a model that has rank 1 and the same scale, started from the same row."""

    def of_rank_1():
        model, whole = build_small_model(), build_adapted_model()
        inject_adapter_in_model(LoraConfig(r=1, lora_alpha=SCALE, target_modules=["0"]), model)
        model[2].requires_grad_(True)
        model[0].lora_A["default"].weight.data = whole[0].lora_A["default"].weight.data[:1].clone()
        return model

    only, options = {"C": clients["C"]}, replace(OPTIONS, rounds=3)
    ours, _ = run(only, build_rule("flexlora", ranks={"C": 1}))
    theirs, _ = federate(only, "flexlora", options, build_model=of_rank_1)
    np.testing.assert_allclose(product(ours.tensors), product(theirs.tensors), rtol=0, atol=1e-5)
    assert np.abs(product(ours.tensors)).max() > 1e-2


@pytest.mark.parametrize("rule", ["ffa_lora", "fedsa_lora", "rolora", "fedex_lora", "flora"])
def test_rules_of_adapters_are_refused_without_them(clients, rule):
    model = build_small_model()
    with pytest.raises(StudyError, match="use it with tuning lora"):
        Sharing.of(model, build_rule(rule))


def test_ranks_are_checked(clients):
    for ranks, message in (({"Z": 1}, "Z is no client; there are A, B, C"), ({"A": 4}, "A has 4, more than the 3")):
        with pytest.raises(StudyError, match=message):
            run(clients, build_rule("flexlora", ranks=ranks))
    for ranks in ({"A": 0}, {"A": 1.5}, [1]):
        with pytest.raises(StudyError, match="ranks must be whole numbers"):
            build_rule("flexlora", ranks=ranks)


def test_every_tensor_can_be_named_private_beside_any_rule(clients):
    _, grid = run(clients, FedAvg(private=["2.*"]))
    assert isinstance(grid, RecordingGrid)
    assert all(found == {A, B} for found in sent(grid.down) + sent(grid.up))
    with pytest.raises(StudyError, match="trains nothing called '3.bias'"):
        run(clients, FedAvg(private=["3.bias"]))
    with pytest.raises(StudyError, match="nothing that travels"):
        run(clients, FedAvg(private=["*"]))
    with pytest.raises(StudyError, match="private must be a list"):
        run(clients, FedAvg(private="head"))


def build_dual_model():
    model = build_adapted_model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=["0"]), model, adapter_name="local")
    model[0].set_adapter(["default", "local"])
    model[2].requires_grad_(True)
    return model


@pytest.mark.parametrize("rule", ["rate_my_lora", "flora", "fedex_lora"])
def test_a_pair_that_stays_with_the_client_is_not_merged(clients, rule):
    result, grid = federate(
        clients,
        build_rule(rule, private=["local"]),
        replace(OPTIONS, rounds=2),
        build_model=build_dual_model,
    )
    assert set(result.tensors) == {A, B, BASE, "2.weight", "2.bias"}
    assert np.abs(result.tensors[BASE] - build_dual_model()[0].base_layer.weight.detach().numpy()).max() > 1e-4
    nothing = build_rule("flora", private=["lora_B"])
    with pytest.raises(StudyError, match="no LoRA factors A and B that both travel"):
        federate(clients, nothing, replace(OPTIONS, rounds=1), build_model=build_dual_model)


@pytest.mark.parametrize("denominator", ["literal", "normalised"])
def test_rate_my_lora_merges_the_mean_of_the_products_with_its_penalties(three_clients, denominator):
    """In dense matrices: W + sum_k p_k s B_k A_k with the p_k of rounds.tsv; the head by the same p_k."""
    rule = build_rule("rate_my_lora", penalty="exp", gamma=20.0, denominator=denominator)
    validations = {name: make_client(name, validation=5, seed=40 + k).validation for k, name in enumerate("ABC")}
    clients = {name: replace(c, validation=validations[name]) for name, c in three_clients.items()}
    result, grid = federate(clients, rule, replace(OPTIONS, rounds=4), build_model=build_adapted_model)
    start = build_adapted_model().state_dict()
    base, head = (start[name].numpy().astype(np.float64) for name in (BASE, "2.weight"))
    totals = []
    for number in range(1, result.best_round + 1):
        weights = {row["client"]: row["weight"] for row in result.rows if row["round"] == number}
        models = trained_models(grid, number)
        base = base + sum(weights[name] * product(model) for name, model in models.items())
        head = head + sum(weights[name] * (model["2.weight"] - head) for name, model in models.items())
        totals.append(sum(weights.values()))
    np.testing.assert_allclose(result.tensors[BASE], base, rtol=0, atol=2e-6)
    np.testing.assert_allclose(result.tensors["2.weight"], head, rtol=0, atol=2e-6)
    assert not result.tensors[B].any()
    every = {row["round"]: 0.0 for row in result.rows}
    for row in result.rows:
        every[row["round"]] += row["weight"]
    assert max(every.values()) == pytest.approx(1)
    assert (min(every.values()) < 0.99) == (denominator == "literal")  # some client fell: the step is shorter


def test_a_client_of_lower_rank_counts_with_what_it_was_served():
    """By dense matrices: what a client of rank 1 had is the first component, and not the whole of the round before."""
    rule, generator = build_rule("flexlora", ranks={"b": 1}), np.random.default_rng(0)
    tensors = {A: generator.normal(size=(3, 6)), B: generator.normal(size=(4, 3))}
    state = rule.init(tensors, ["a", "b"])
    deltas = {"a": {A: generator.normal(size=(3, 6)), B: generator.normal(size=(4, 3))}}
    deltas["b"] = {A: np.zeros((3, 6)), B: np.zeros((4, 3))}
    deltas["b"][A][0], deltas["b"][B][:, 0] = 0.5, -0.25
    _, after, _ = rule.apply(state, [Update("a", deltas["a"], 1), Update("b", deltas["b"], 3)])
    whole = (tensors[B] + deltas["a"][B]) @ (tensors[A] + deltas["a"][A])
    first = np.outer(tensors[B][:, 0] - 0.25, tensors[A][0] + 0.5)
    u, values, vt = np.linalg.svd(0.25 * whole + 0.75 * first, full_matrices=False)
    np.testing.assert_allclose(after[B] @ after[A], (u[:, :3] * values[:3]) @ vt[:3], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rule", "entry"), [("fedper", "head"), ("fedbn", "norm"), ("fedsa_lora", "lora_B")])
def test_what_else_is_private_comes_to_what_defines_a_rule(rule, entry):
    assert build_rule(rule).private == (entry,)
    assert build_rule(rule, private=["x.*", entry]).private == (entry, "x.*")


def test_the_config_tells_of_a_private_that_is_no_list():
    assert build_rule("fedper", private="head").private == "head"
