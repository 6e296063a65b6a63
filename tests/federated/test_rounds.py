"""The federated run against loops written by hand, and what its messages carry."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from federation import OPTIONS, SEED, RecordingGrid, as_bytes, failing, federate, timeless
from flwr.app import ConfigRecord, Context, Message, RecordDict
from small_clients import build_small_model, make_client, make_samples
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.aggregation.rule import Rule
from fedbrain.federated.apps import build_client_app, build_server_app
from fedbrain.federated.grid import InProcessGrid
from fedbrain.federated.rounds import ClientFailure, run_rounds
from fedbrain.federated.sharing import Sharing
from fedbrain.federated.task import TrainingOptions, evaluate, minus_model, round_generator, train, train_alone

SHARED = Sharing((("*", "shared"),))


def test_one_client_is_plain_local_training_to_the_bit(three_clients):
    client = three_clients["C"]
    result, _ = federate({"C": client})
    alone = list(train_alone(build_small_model(), client, OPTIONS, SEED, "cpu"))
    best = min(alone, key=lambda done: done.validation.loss)
    assert result.best_round == best.round
    assert as_bytes(result.tensors) == as_bytes(best.tensors)
    assert [row["validation_loss"] for row in result.rows] == [done.validation.loss for done in alone]
    assert [row["loss"] for row in result.rows] == [done.loss for done in alone]


@pytest.mark.parametrize("rule", ["fedavg", "simpleavg"])
@pytest.mark.parametrize(("rounds", "tolerance"), [(1, 2e-7), (4, 2e-6)])
def test_averages_equal_a_loop_written_by_hand(three_clients, rule, rounds, tolerance):
    options = TrainingOptions(rounds=rounds, batch_size=5, learning_rate=0.02, selection="balanced_accuracy")
    unvalidated = {
        name: make_client(name, len(c.train), 0, seed=k) for k, (name, c) in enumerate(three_clients.items())
    }
    result, _ = federate(unvalidated, rule, options)  # without validation scans: the last round

    world = build_small_model().state_dict()
    sizes = {name: len(client.train) for name, client in unvalidated.items()}
    for number in range(1, rounds + 1):
        total = {name: torch.zeros_like(tensor) for name, tensor in world.items()}
        for name, client in unvalidated.items():
            model = build_small_model()
            model.load_state_dict(world)
            train(model, client.train, options, round_generator(SEED, name, number), "cpu")
            share = sizes[name] / sum(sizes.values()) if rule == "fedavg" else 1 / 3
            for key, tensor in model.state_dict().items():
                total[key] += share * tensor
        world = total
    assert result.best_round == rounds
    for name, tensor in world.items():
        # The sums of round 1 differ by rounding; AdamW carries that along.
        np.testing.assert_allclose(result.tensors[name], tensor, rtol=0, atol=tolerance)


def test_fedce_scores_are_those_of_the_minus_model(three_clients):
    """The second round's score of each client, computed from the messages alone."""
    seen = []

    class Spy(Rule):
        needs = frozenset({"minus_score"})
        inner = build_rule("fedce")

        def init(self, tensors, clients):
            return self.inner.init(tensors, clients)

        def apply(self, state, updates):
            after = self.inner.apply(state, updates)
            seen.append((state, updates, after[2]))
            return after

    federate(three_clients, Spy())
    assert all(not update.scalars for update in seen[0][1])
    for (before, updates, weights), (state, later, _) in zip(seen, seen[1:]):
        own = {update.client: update for update in updates}
        for update in later:
            trained = {n: torch.tensor(before.tensors[n] + own[update.client].delta[n]).float() for n in before.tensors}
            world = {name: torch.tensor(tensor) for name, tensor in state.tensors.items()}
            model = build_small_model()
            model.load_state_dict(minus_model(world, trained, weights[update.client]))
            expected = evaluate(model, three_clients[update.client].validation).balanced_accuracy
            assert update.scalars["minus_score"] == expected


def test_fedce_equals_a_loop_written_by_hand(three_clients):
    """Three rounds of version 2.9, plus, in plain torch on flat vectors."""
    options = TrainingOptions(rounds=3, batch_size=5, learning_rate=0.05)
    clients = {name: replace(client, validation=client.train) for name, client in three_clients.items()}
    result, grid = federate(clients, "fedce", options)

    def flat(model):
        return parameters_to_vector(model.parameters()).detach().double()

    model = build_small_model()
    world, p = flat(model), torch.full((3,), 1 / 3, dtype=torch.float64)
    cosines, scores, own, all_weights = torch.zeros(3), torch.zeros(3), {}, []
    for number in range(1, 4):
        deltas = []
        for k, (name, client) in enumerate(clients.items()):
            if name in own:
                vector_to_parameters(((world - p[k] * own[name]) / (1 - p[k])).float(), model.parameters())
                scores[k] += evaluate(model, client.validation).balanced_accuracy
            vector_to_parameters(world.float(), model.parameters())
            train(model, client.train, options, round_generator(SEED, name, number), "cpu")
            own[name] = flat(model)
            deltas.append(own[name] - world)
        mixture = sum(q * delta for q, delta in zip(p, deltas))
        for k, delta in enumerate(deltas):
            cosines[k] += torch.cosine_similarity(delta, mixture - p[k] * delta, dim=0)
        g, e = ((1 - total / number).clamp(min=1e-6) for total in (cosines, scores))
        p = (g / g.sum() + e / e.sum()).double()
        p /= p.sum()
        all_weights.append(p.tolist())
        world = world + sum(q * delta for q, delta in zip(p, deltas))

    rows = {(row["round"], row["client"]): row["weight"] for row in result.rows}
    ours = [[rows[number, name] for name in clients] for number in (1, 2, 3)]
    np.testing.assert_allclose(ours, all_weights, rtol=0, atol=2e-5)
    assert result.best_round == 3  # the training scans validate here, so the last round is the best
    ends = torch.cat([torch.tensor(tensor).ravel() for tensor in result.tensors.values()])
    np.testing.assert_allclose(ends, world, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rule", ["fedavg", "fedce"])
def test_a_client_is_told_its_weight_of_the_round_before(three_clients, rule):
    result, grid = federate(three_clients, rule)
    rows = {(row["round"], row["client"]): row["weight"] for row in result.rows}
    names = {node: context.node_config["client"] for node, context in grid.contexts.items()}
    for message in grid.down:
        if message.metadata.message_type == "train":
            config = message.content["config"]
            expected = rows.get((config["round"] - 1, names[message.metadata.dst_node_id]), 1 / 3)
            assert config["weight"] == expected


def test_rate_my_lora_gets_the_score_of_the_trained_model(three_clients):
    result, grid = federate({"A": three_clients["A"]}, "rate_my_lora")
    replies = [reply.content["metrics"] for reply in grid.up if "arrays" in reply.content]
    # Of one client the trained model is the next round's global model.
    assert [reply["local_score"] for reply in replies] == [row["validation_score"] for row in result.rows]


@pytest.mark.parametrize("rule", ["fedavg", "fedce", "rate_my_lora"])
def test_the_order_of_clients_does_not_change_a_bit(three_clients, rule):
    first, _ = federate(three_clients, rule)
    second, _ = federate(dict(reversed(three_clients.items())), rule)
    assert as_bytes(first.tensors) == as_bytes(second.tensors)
    assert timeless(first.rows) == timeless(second.rows)


def test_bytes_are_those_of_the_arrays_in_the_messages(three_clients):
    result, grid = federate(three_clients)
    model = sum(tensor.numel() * 4 for tensor in build_small_model().state_dict().values())

    def of(messages):
        return sum(
            array.numpy().nbytes
            for message in messages
            for record in message.content.array_records.values()
            for array in record.values()
        )

    assert sum(row["bytes_down"] for row in result.rows) == of(grid.down) == 3 * (OPTIONS.rounds + 1) * model
    assert sum(row["bytes_up"] for row in result.rows) == of(grid.up) == 3 * OPTIONS.rounds * model


def test_messages_carry_shared_tensors_and_known_scalars_only(three_clients):
    sharing = Sharing((("2.bias", "private"), ("0.weight", "frozen"), ("*", "shared")))
    _, grid = federate(three_clients, "fedce", sharing=sharing)
    scalars = {"scans", "seconds", "peak_memory", "loss", "validation_loss", "validation_score", "minus_score"}
    for message in grid.down + grid.up:
        for record in message.content.array_records.values():
            assert set(record) == {"0.bias", "2.weight"}
        for record in message.content.metric_records.values():
            assert set(record) <= scalars
            assert all(np.ndim(value) == 0 for value in record.values())
        for record in message.content.config_records.values():
            assert set(record) <= {
                "round",
                "evaluate",
                "needs",
                "weight",
                "accepted",
                "best",
                "client",
                "train",
                "validation",
            }


def test_private_tensors_stay_and_frozen_ones_stand(three_clients):
    sharing = Sharing((("2.bias", "private"), ("0.weight", "frozen"), ("*", "shared")))
    result, grid = federate(three_clients, sharing=sharing)
    kept = [kept.after(OPTIONS.rounds)["private"]["2.bias"] for kept in grid.kept.values()]
    assert not np.array_equal(kept[0], kept[1])
    assert set(result.tensors) == {"0.bias", "2.weight"}

    # By hand: one client with a private tensor is local training, since its private tensor goes on from round to round.
    result, grid = federate({"A": three_clients["A"]}, sharing=sharing)
    model = build_small_model()
    model[0].weight.requires_grad_(False)
    alone = list(train_alone(model, three_clients["A"], OPTIONS, SEED, "cpu"))
    for number in (OPTIONS.rounds, result.best_round):
        kept = grid.kept["A"].after(number)["private"]["2.bias"]
        assert kept.tobytes() == alone[number - 1].tensors["2.bias"].numpy().tobytes()


def test_a_client_that_raises_stops_the_run_and_is_named(three_clients):
    with pytest.raises(ClientFailure, match=r"round 2: 2 of 3 clients .* client B: MemoryError: out of memory"):
        federate(three_clients, load=failing(three_clients, "B", {2}))


def test_with_a_quorum_the_round_goes_on_without_it(three_clients):
    result, _ = federate(three_clients, options=replace(OPTIONS, quorum=2), load=failing(three_clients, "B", {2}))
    row = next(row for row in result.rows if row["round"] == 2 and row["client"] == "B")
    assert (row["status"], row["reason"]) == ("failed", "MemoryError: out of memory")
    assert row["weight"] is None
    assert row["bytes_up"] == 0
    others = [row["weight"] for row in result.rows if row["round"] == 2 and row["status"] == "ok"]
    assert others == [12 / 32, 20 / 32]
    assert len([row for row in result.rows if row["status"] == "ok"]) == 11


class Silent(RecordingGrid):
    """Loses what the last client replies in the rounds."""

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        lost = [r for r in replies if "metrics" in r.content and r.metadata.src_node_id == max(self.contexts)]
        return [reply for reply in replies if reply not in lost]


def test_a_client_that_does_not_reply_is_a_row(three_clients):
    result, _ = federate(three_clients, options=replace(OPTIONS, quorum=2, deadline=30), grid=Silent)
    assert {row["reason"] for row in result.rows if row["client"] == "C"} == {"no reply within 30 s"}
    with pytest.raises(ClientFailure, match="client C: no reply"):
        federate(three_clients, options=replace(OPTIONS, deadline=30), grid=Silent)


def test_the_grid_calls_clients_in_node_order_and_answers_each_message():
    called = []

    def app(message, context):
        called.append(context.node_config["client"])
        return Message(RecordDict({"who": ConfigRecord({"client": called[-1]})}), reply_to=message)

    grid = InProcessGrid(app, ["b", "c", "a"])
    nodes = grid.get_node_ids()
    ids = grid.push_messages([Message(RecordDict(), node, "query") for node in reversed(nodes)])
    assert called == []
    replies = grid.pull_messages(ids)
    assert called == ["a"]  # one at a time, so that one reply at a time is held
    replies += grid.pull_messages(ids) + grid.pull_messages(ids)
    assert [reply.content["who"]["client"] for reply in replies] == ["a", "b", "c"]
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    assert grid.pull_messages(ids) == []


def test_two_nodes_with_one_name_are_refused(three_clients):
    with pytest.raises(ClientFailure, match="same client name"):
        federate(three_clients, names=["A", "B", "A"])


def test_the_best_round_is_the_lowest_scan_weighted_validation_loss(three_clients):
    clients = {
        "A": make_client("A", validation=3, seed=4),
        "B": make_client("B", validation=11, seed=5),
        "C": make_client("C", validation=0, seed=6),
    }
    result, _ = federate(clients, options=TrainingOptions(rounds=6, learning_rate=0.2, batch_size=4))
    losses = {}
    for row in result.rows:
        if row["client"] != "C":
            losses.setdefault(row["round"], {})[row["client"]] = row["validation_loss"]
    means = {number: (3 * of["A"] + 11 * of["B"]) / 14 for number, of in losses.items()}
    assert result.best_round == min(means, key=means.get)
    assert f"{min(means.values()):.6g}" in result.reason
    # The tensors are that round's: its validation values come out again.
    model = build_small_model()
    model.load_state_dict({name: torch.tensor(tensor) for name, tensor in result.tensors.items()})
    assert evaluate(model, clients["B"].validation).loss == losses[result.best_round]["B"]


def test_without_validation_scans_it_is_the_last_round():
    result, _ = federate({"A": make_client("A", validation=0)})
    assert result.best_round == OPTIONS.rounds
    assert "no client has validation scans" in result.reason


@pytest.mark.parametrize("rule", ["fedavg", "fedce", "rate_my_lora", "scaffold", "fedprox"])
def test_a_run_that_ended_early_goes_on_and_ends_in_the_same_bytes(three_clients, rule, tmp_path):
    sharing = Sharing((("2.bias", "private"), ("*", "shared")))
    whole, whole_grid = federate(three_clients, rule, sharing=sharing)
    again = {"checkpoint": tmp_path / "checkpoint.safetensors", "identity": "run", "folder": tmp_path}
    with pytest.raises(ClientFailure):
        federate(three_clients, rule, sharing=sharing, load=failing(three_clients, "C", {3}), **again)
    resumed, grid = federate(three_clients, rule, sharing=sharing, **again)
    assert grid.trained() == dict.fromkeys("ABC", [3, 4])
    assert as_bytes(resumed.tensors) == as_bytes(whole.tensors)
    assert resumed.best_round == whole.best_round
    assert timeless(resumed.rows) == timeless(whole.rows)
    for name, kept in grid.kept.items():
        for number in (whole.best_round, OPTIONS.rounds):
            ours, theirs = kept.after(number), whole_grid.kept[name].after(number)
            assert {group: as_bytes(arrays) for group, arrays in ours.items()} == {
                group: as_bytes(arrays) for group, arrays in theirs.items()
            }


@pytest.mark.parametrize("content", [None, b"", b"not a safetensors file"])
def test_a_checkpoint_that_is_anothers_or_broken_is_not_used(three_clients, tmp_path, content):
    path = tmp_path / "checkpoint.safetensors"
    if content is None:
        federate(three_clients, checkpoint=path, identity="another run")
    else:
        path.write_bytes(content)
    _, grid = federate(three_clients, checkpoint=path, identity="this run")
    assert grid.trained() == dict.fromkeys("ABC", [1, 2, 3, 4])


def test_a_finished_checkpoint_needs_only_the_last_evaluation(three_clients, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    whole, _ = federate(three_clients, checkpoint=path, identity="run")
    again, grid = federate(three_clients, checkpoint=path, identity="run")
    assert {m.metadata.message_type for m in grid.down} == {"query", "evaluate"}
    assert as_bytes(again.tensors) == as_bytes(whole.tensors)
    assert timeless(again.rows) == timeless(whole.rows)


def test_the_server_app_runs_the_same_rounds(three_clients):
    result, _ = federate(three_clients)
    app = build_client_app(
        lambda context: three_clients[context.node_config["client"]], build_small_model, SHARED, OPTIONS, seed=SEED
    )
    finished = []
    tensors = {name: tensor.numpy() for name, tensor in build_small_model().state_dict().items()}
    server = build_server_app(build_rule("fedavg"), tensors, OPTIONS, finished.append)
    server(InProcessGrid(app, "CAB"), Context(1, 0, {}, RecordDict(), {}))
    assert as_bytes(finished[0].tensors) == as_bytes(result.tensors)


def test_a_server_with_another_model_is_refused(three_clients):
    app = build_client_app(
        lambda context: three_clients[context.node_config["client"]], build_small_model, SHARED, OPTIONS, seed=SEED
    )
    with pytest.raises(ClientFailure, match="other shared tensors"):
        run_rounds(InProcessGrid(app, "ABC"), build_rule("fedavg"), {"w": np.zeros(3, np.float32)}, OPTIONS)


def test_one_class_clients_take_part():
    clients = {
        "A": make_client("A", train=10, seed=1),
        "B": make_client("B", labels=[1] * 8, train=8, seed=2),
        "C": make_client("C", labels=[0], train=1, validation=1, seed=3),
    }
    for rule in ("fedavg", "fedce", "rate_my_lora"):
        result, _ = federate(clients, rule)
        assert {row["status"] for row in result.rows} == {"ok"}
        assert all(np.isfinite(tensor).all() for tensor in result.tensors.values())
    assert make_samples(1, seed=0, tag="s").counts() == (1, 0)
