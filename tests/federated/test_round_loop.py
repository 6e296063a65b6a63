"""Who takes part in a round: clients drawn, clients that fail, updates that are refused, runs that end before their last round."""

import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from federation import OPTIONS, SEED, RecordingGrid, as_bytes, failing, federate, timeless
from flwr.app import Array, ArrayRecord, MetricRecord
from small_clients import build_small_model, make_client, make_samples

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.aggregation.averages import FedAvg
from fedbrain.federated.cell import _failures, train_cell
from fedbrain.federated.kept import Kept
from fedbrain.federated.rounds import ClientFailure
from fedbrain.federated.task import TrainingOptions, round_generator, train, train_alone
from fedbrain.tables import PREDICTIONS, ROUNDS, read_table

TWO_OF_THREE = replace(OPTIONS, quorum=2)


def tampering(change, number=2, client="B"):
    """A grid in which one client's reply of one round is changed on its way."""

    class Tampering(RecordingGrid):
        def _call(self, message):
            reply = super()._call(message)
            name = self.contexts[message.metadata.dst_node_id].node_config["client"]
            training = message.metadata.message_type == "train" and message.content["config"]["round"] == number
            if name == client and training:
                change(reply.content)
            return reply

    return Tampering


def with_value(value):
    def change(content):
        array = content["arrays"]["2.weight"].numpy()
        array[1, 2] = value
        content["arrays"]["2.weight"] = Array(array)

    return change


def with_arrays(**arrays):
    def change(content):
        kept = {
            name: array
            for name, array in content["arrays"].items()
            if arrays.get(name.replace(".", "_"), 1) is not None
        }
        extra = {name.replace("_", "."): Array(a) for name, a in arrays.items() if a is not None}
        content["arrays"] = ArrayRecord(kept | extra)

    return change


def with_scans(value):
    def change(content):
        content["metrics"]["scans"] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_value(np.nan), "2.weight has values that are not finite"),
        (with_value(-np.inf), "2.weight has values that are not finite"),
        (with_arrays(**{"2_weight": np.zeros((4, 2), np.float32)}), "2.weight has shape (4, 2), not (2, 4)"),
        (with_arrays(**{"2_weight": None}), "2.weight is missing"),
        (with_arrays(other=np.zeros(3, np.float32)), "other is not asked for"),
        (with_arrays(**{"2_bias": np.array(["a", "b"])}), "2.bias holds no numbers"),
        (with_scans(0), "0 training scans"),
        (with_scans(float("nan")), "scans is nan"),
    ],
    ids=["nan", "inf", "shape", "missing", "extra", "text", "no scans", "nan scans"],
)
def test_a_bad_update_is_refused_and_the_round_is_as_if_the_client_had_not_replied(three_clients, change, reason):
    result, _ = federate(three_clients, options=TWO_OF_THREE, grid=tampering(change))
    silent, _ = federate(three_clients, options=TWO_OF_THREE, load=failing(three_clients, "B", {2}))
    assert as_bytes(result.tensors) == as_bytes(silent.tensors)
    assert all(np.isfinite(tensor).all() for tensor in result.tensors.values())
    row = next(row for row in result.rows if row["round"] == 2 and row["client"] == "B")
    assert (row["status"], row["reason"], row["weight"]) == ("failed", f"update refused: {reason}", None)
    with pytest.raises(
        ClientFailure,
        match=re.escape(f"round 2: 2 of 3 clients did their part, 3 needed; client B: update refused: {reason}"),
    ):
        federate(three_clients, grid=tampering(change))


def test_wrong_controls_of_scaffold_are_refused_too(three_clients):
    def change(content):
        content["beside"] = ArrayRecord({"0.weight": Array(np.zeros(3, np.float32))})

    with pytest.raises(ClientFailure, match="update refused: 0.bias is missing"):
        federate(three_clients, "scaffold", grid=tampering(change))


@pytest.mark.parametrize("rule", ["fedavg", "fedadam", "fedce", "median", "scaffold"])
def test_weights_of_a_round_with_a_failure_are_those_of_the_others(three_clients, rule):
    """Running sums are of the weights that all would have had; the two that are left count as if they had been asked alone."""
    load = failing(three_clients, "B", {1})
    result, _ = federate(three_clients, rule, replace(TWO_OF_THREE, rounds=1), load=load)
    others = {name: client for name, client in three_clients.items() if name != "B"}
    alone, _ = federate(others, rule, replace(OPTIONS, rounds=1))
    for name, tensor in alone.tensors.items():
        np.testing.assert_allclose(result.tensors[name], tensor, rtol=0, atol=1e-7)
    weights = {row["client"]: row["weight"] for row in result.rows}
    assert [weights["A"], weights["C"]] == pytest.approx([row["weight"] for row in alone.rows])
    assert weights["B"] is None


def test_a_failing_client_that_comes_back_goes_on_with_what_it_kept(three_clients):
    result, grid = federate(three_clients, "scaffold", TWO_OF_THREE, load=failing(three_clients, "B", {2}))
    assert [row["status"] for row in result.rows if row["client"] == "B"] == ["ok", "failed", "ok", "ok"]
    kept = grid.kept["B"]
    assert set(kept.after(4)) == {"memory"}


def test_below_the_quorum_the_run_stops_and_goes_on_later(three_clients, tmp_path):
    again = {"checkpoint": tmp_path / "c.safetensors", "identity": "run", "folder": tmp_path}
    with pytest.raises(ClientFailure, match="round 3: 2 of 3 clients did their part, 3 needed; client B: MemoryError"):
        federate(three_clients, load=failing(three_clients, "B", {3}), **again)
    result, grid = federate(three_clients, **again)
    assert grid.trained() == dict.fromkeys("ABC", [3, 4])
    assert as_bytes(result.tensors) == as_bytes(federate(three_clients)[0].tensors)


def test_a_client_slower_than_the_deadline_has_a_row(three_clients):
    def load(context):
        if context.node_config["client"] == "C":
            time.sleep(0.6)
        return three_clients[context.node_config["client"]]

    options = replace(OPTIONS, rounds=1, quorum=2, deadline=0.5)
    result, _ = federate(three_clients, options=options, load=load)
    assert [(row["status"], row["reason"]) for row in result.rows] == [
        ("ok", None),
        ("ok", None),
        ("failed", "no reply within 0.5 s"),
    ]


FIVE = {name: make_client(name, train=4 + k, validation=3, seed=k) for k, name in enumerate("ABCDE")}
SAMPLED = replace(OPTIONS, rounds=6, sample=2)


def test_clients_are_drawn_anew_in_each_round_by_the_seed_alone():
    result, grid = federate(FIVE, options=SAMPLED)
    drawn = [tuple(sorted(n for n, rounds in grid.trained().items() if k in rounds)) for k in range(1, 7)]
    assert {len(names) for names in drawn} == {2}
    assert len(set(drawn)) > 2
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - what others draw must not matter
    again, other = federate(dict(reversed(FIVE.items())), options=SAMPLED)
    assert other.trained() == grid.trained()
    assert as_bytes(again.tensors) == as_bytes(result.tensors)
    rows = {(row["round"], row["client"]): row for row in result.rows}
    for number, names in enumerate(drawn, start=1):
        for name in FIVE:
            assert rows[number, name]["status"] == ("ok" if name in names else "rested")
            assert (rows[number, name]["weight"] is None) == (name not in names)
            assert rows[number, name]["validation_loss"] is not None  # all judge every round
        assert sum(rows[number, name]["weight"] for name in names) == pytest.approx(1)
    first = [rows[1, name] for name in FIVE if name not in drawn[0]]
    assert {(row["bytes_down"], row["bytes_up"], row["scans"], row["seconds"]) for row in first} == {(0, 0, 0, None)}


@pytest.mark.parametrize("rule", ["fedavg", "fedce", "scaffold", "ditto", "fedavgm"])
def test_a_run_with_drawn_clients_goes_on_and_ends_in_the_same_bytes(rule, tmp_path):
    whole, whole_grid = federate(FIVE, rule, SAMPLED)
    name = next(name for name, rounds in whole_grid.trained().items() if 4 in rounds)
    nodes = {context.node_config["client"]: node for node, context in whole_grid.contexts.items()}
    own = [m for m in whole_grid.down if m.metadata.dst_node_id == nodes[name]]
    place = next(
        k for k, m in enumerate(own) if m.metadata.message_type == "train" and m.content["config"]["round"] == 4
    )
    again = {"checkpoint": tmp_path / "c.safetensors", "identity": "run", "folder": tmp_path}
    with pytest.raises(ClientFailure, match="round 4"):
        federate(FIVE, rule, SAMPLED, load=failing(FIVE, name, {place}), **again)
    resumed, _ = federate(FIVE, rule, SAMPLED, **again)
    assert as_bytes(resumed.tensors) == as_bytes(whole.tensors)
    assert timeless(resumed.rows) == timeless(whole.rows)


@pytest.mark.parametrize("options", [{"sample": 4}, {"quorum": 4}])
def test_more_clients_than_there_are_cannot_be_asked_for(three_clients, options):
    (name,) = options
    with pytest.raises(StudyError, match=f"training: {name} is 4, and there are 3 clients that train"):
        federate(three_clients, options=replace(OPTIONS, **options))
    with pytest.raises(StudyError, match="quorum 3 is more than the 2 clients of a round"):
        TrainingOptions(sample=2, quorum=3)


def misled(clients):
    """What they learn makes them worse on their validation scans: the first round is the best."""
    return {n: replace(c, validation=replace(c.validation, y=1 - c.validation.y)) for n, c in clients.items()}


def test_a_run_without_progress_ends_by_its_patience(three_clients, tmp_path):
    options = replace(OPTIONS, rounds=9, patience=2)
    whole, grid = federate(misled(three_clients), options=options)
    assert whole.best_round == 1
    assert max(row["round"] for row in whole.rows) == 4  # rounds 2 and 3 are judged by then
    assert "ended after round 4" in whole.reason
    long, _ = federate(misled(three_clients), options=replace(OPTIONS, rounds=4))
    assert as_bytes(long.tensors) == as_bytes(whole.tensors)
    # A run that was stopped after its last round does not train again.
    again = {"checkpoint": tmp_path / "c.safetensors", "identity": "run", "folder": tmp_path}
    for _ in range(2):
        result, grid = federate(misled(three_clients), options=options, **again)
        assert timeless(result.rows) == timeless(whole.rows)
    assert grid.trained() == dict.fromkeys("ABC", [])
    unvalidated = {name: make_client(name, validation=0) for name in "AB"}
    assert federate(unvalidated, options=options)[0].best_round == 9


def test_patience_of_the_references(tmp_path):
    shape = (384, 2, 2, 2)
    clients = misled({n: make_client(n, 8, 6, 2, seed=k, shape=shape, effect=0.3) for k, n in enumerate("AB")})
    training = {"rounds": 9, "patience": 2, "learning_rate": 0.01}
    for aggregation in ("local", "centralized"):
        folder = tmp_path / aggregation
        summary = train_cell(
            clients, head="linear", tuning="frozen", aggregation=aggregation, training=training, folder=folder
        )
        rounds = read_table(folder / "rounds.tsv", ROUNDS)
        for name, best in summary["best_round"].items():
            assert rounds[rounds["client"] == name]["round"].max() == best + 2 < 9
            assert f"ended after round {best + 2}" in summary["reason"][name]


def test_the_cosine_schedule_by_hand(three_clients):
    options = TrainingOptions(rounds=4, learning_rate=0.2, schedule="cosine", batch_size=5)
    rates = [options.of_round(number).learning_rate for number in (1, 2, 3, 4)]
    root = 2**0.5 / 4
    assert rates == pytest.approx([0.2, 0.2 * (0.5 + root), 0.1, 0.2 * (0.5 - root)])
    client, model = three_clients["C"], build_small_model()
    for number, rate in enumerate(rates, start=1):
        constant = TrainingOptions(learning_rate=rate, batch_size=5)
        train(model, client.train, constant, round_generator(SEED, "C", number), "cpu")
    alone = list(train_alone(build_small_model(), client, options, SEED, "cpu"))
    ours = as_bytes({name: tensor.numpy() for name, tensor in model.state_dict().items()})
    assert as_bytes(alone[-1].tensors) == ours
    federated, _ = federate(
        {"C": replace(client, validation=make_client("C", validation=0).validation)}, options=options
    )
    assert as_bytes(federated.tensors) == ours


RULES = ["fedavg", "fedce", "rate_my_lora", "fedprox", "scaffold", "ditto", "median"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weights", ["balanced", "none"])
def test_clients_of_one_scan_one_class_or_without_validation_take_part(rule, weights):
    clients = {
        "one": make_client("one", train=1, validation=0, labels=[1], seed=1),
        "class": make_client("class", train=5, validation=1, labels=[0] * 5, seed=2),
        "all": make_client("all", train=9, seed=3),
    }
    for size in (1, 2, 9, 50):
        options = TrainingOptions(rounds=2, batch_size=size, learning_rate=0.02, class_weights=weights)
        result, _ = federate(clients, rule, options)
        assert {row["status"] for row in result.rows} == {"ok"}
        assert all(np.isfinite(tensor).all() for tensor in result.tensors.values())
        assert all(row["validation_loss"] is None for row in result.rows if row["client"] == "one")


def test_a_batch_as_large_as_the_client_is_one_step_of_all_its_scans():
    samples = make_samples(7, seed=1, tag="s")
    models = []
    for size in (7, 500):
        models.append(build_small_model())
        train(models[-1], samples, TrainingOptions(batch_size=size), round_generator(0, "A", 1), "cpu")
    assert as_bytes({k: v.numpy() for k, v in models[0].state_dict().items()}) == as_bytes(
        {k: v.numpy() for k, v in models[1].state_dict().items()}
    )


def test_what_a_client_keeps_of_which_round(tmp_path):
    def groups(value):
        return {name: {"w": np.array([value])} for name in ("private", "memory")}

    def values(kept, round):
        return {group: int(arrays["w"][0]) for group, arrays in kept.after(round).items()}

    kept = Kept(tmp_path / "c.safetensors", "run")
    assert kept.after(9) == {}
    for number, best in ((1, 0), (2, 0), (3, 1), (5, 1)):  # not drawn for round 4
        kept.keep(number, groups(number), best=best, of_best=["private"])
    for again in (kept, Kept(tmp_path / "c.safetensors", "run")):
        assert values(again, 0) == {}
        assert values(again, 1) == values(again, 2) == {"private": 1}
        assert values(again, 3) == values(again, 4) == {"private": 3, "memory": 3}
        assert values(again, 7) == {"private": 5, "memory": 5}
    kept.keep(5, groups(50), best=3, of_best=["private"])  # the round is done again
    assert values(kept, 4) == {"private": 3, "memory": 3}
    assert values(kept, 5) == {"private": 50, "memory": 50}
    assert Kept(tmp_path / "c.safetensors", "another run").after(9) == {}
    (tmp_path / "c.safetensors").write_bytes(b"broken")
    assert Kept(tmp_path / "c.safetensors", "run").after(9) == {}


@pytest.mark.parametrize("value", [None, "list"])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_reply_without_scalars_is_refused_and_no_crash(three_clients, kind, value):
    class Bare(RecordingGrid):
        def _call(self, message):
            reply = super()._call(message)
            if message.metadata.message_type == kind and message.metadata.dst_node_id == max(self.contexts):
                del reply.content["metrics"]
                if value:
                    reply.content["metrics"] = MetricRecord({"scans": [3, 4]})
            return reply

    reason = "reply refused: scans is no number" if value else "reply refused: metrics are missing"
    result, _ = federate(three_clients, options=replace(TWO_OF_THREE, rounds=2), grid=Bare)
    reasons = [row["reason"] for row in result.rows if row["client"] == "C"]
    assert reasons == ([reason] * 2 if kind == "train" else [None, f"not in the last evaluation: {reason}"])
    with pytest.raises(ClientFailure, match=f"client C: {reason}"):
        federate(three_clients, grid=Bare)


def test_an_update_without_its_number_of_scans_is_refused(three_clients):
    def change(content):
        del content["metrics"]["scans"]

    result, _ = federate(three_clients, options=TWO_OF_THREE, grid=tampering(change))
    row = next(row for row in result.rows if row["round"] == 2 and row["client"] == "B")
    assert row["reason"] == "update refused: scans is missing"
    assert result.rows[1]["validation_loss"] is not None  # what it said of the first round's model stands


def test_rounds_are_compared_on_the_same_scans_only(three_clients):
    """A client on which every model is bad fails once: the round that it did not judge looks best, and is not chosen."""
    clients = three_clients | misled({"C": three_clients["C"]})
    result, _ = federate(clients, options=TWO_OF_THREE, load=failing(clients, "C", {3}))  # round 2 is judged without it
    losses = {}
    for row in result.rows:
        losses.setdefault(row["round"], []).append(row["validation_loss"])
    assert losses[2][2] is None
    assert all(loss is not None for number in (1, 3, 4) for loss in losses[number])
    means = {number: np.mean([loss for loss in of if loss is not None]) for number, of in losses.items()}
    assert min(means, key=means.get) == 2  # all have six validation scans
    assert result.best_round == min((1, 3, 4), key=means.get)
    assert "judged without" not in result.reason
    gone, _ = federate(clients, options=TWO_OF_THREE, load=failing(clients, "C", set(range(1, 9))))
    assert "judged without C, since no round was judged by all" in gone.reason


def test_who_failed_in_an_evaluation_is_told(three_clients):
    result, _ = federate(three_clients, options=TWO_OF_THREE, load=failing(three_clients, "C", {5}))
    reasons = {row["round"]: row["reason"] for row in result.rows if row["client"] == "C"}
    assert reasons == {1: None, 2: None, 3: None, 4: "not in the last evaluation: MemoryError: out of memory"}
    assert _failures(result.rows) == [
        "C: did not evaluate in round 4: not in the last evaluation: MemoryError: out of memory"
    ]
    rested, grid = federate(FIVE, options=SAMPLED)
    name = next(name for name, rounds in grid.trained().items() if 2 not in rounds)
    asked = 1 if 1 in grid.trained()[name] else 0  # a message in round 1?
    load = failing(FIVE, name, {asked + 1})
    with pytest.raises(ClientFailure, match=f"round 2: 4 of 5 clients did their part, 5 needed; client {name}"):
        federate(FIVE, options=SAMPLED, load=load)
    load = failing(FIVE, name, {asked + 1})
    some, _ = federate(FIVE, options=replace(SAMPLED, quorum=2), load=load)
    row = next(row for row in some.rows if row["round"] == 2 and row["client"] == name)
    assert (row["status"], row["reason"]) == ("rested", "MemoryError: out of memory")


@pytest.mark.parametrize("rule", [FedAvg(private=["2.*"]), build_rule("ditto")], ids=["private", "ditto"])
def test_who_has_trained_nothing_of_its_own_does_not_judge(rule):
    result, grid = federate(FIVE, rule, SAMPLED)
    for name, rounds in grid.trained().items():
        first = min(rounds, default=SAMPLED.rounds + 1)
        for row in result.rows:
            if row["client"] == name:
                assert (row["validation_loss"] is None) == (row["round"] < first)
    counts = {n: sum(r["validation_loss"] is not None for r in result.rows if r["round"] == n) for n in range(1, 7)}
    assert counts[1] == 2 < max(counts.values()) == counts[result.best_round]


def test_who_has_trained_nothing_of_its_own_has_no_predictions(tmp_path):
    clients = {n: make_client(n, 8, 4, 4, seed=k, shape=(384, 2, 2, 2)) for k, n in enumerate("ABC")}
    options = {"head": "conv_s", "tuning": "frozen", "aggregation": "flop", "folder": tmp_path}
    summary = train_cell(clients, training={"rounds": 1, "sample": 2}, **options)
    rounds = read_table(tmp_path / "rounds.tsv", ROUNDS)
    (rested,) = rounds[rounds["status"] == "rested"]["client"]
    assert set(read_table(tmp_path / "predictions.tsv", PREDICTIONS)["cohort"]) == set("ABC") - {rested}
    assert [text for text in summary["warnings"] if text.startswith(f"{rested}: had trained nothing of its own")]


@pytest.mark.parametrize("refused", [{2}, {2, 3}])
def test_scaffold_forgets_a_control_that_the_server_did_not_take(three_clients, refused):
    """c stays the mean of the clients' c_k, as algorithm 1 has it: also where updates were refused, once or in a row."""
    states = []

    class Spy(type(build_rule("scaffold"))):
        def gather(self, state, expected):
            states.append(state)
            return super().gather(state, expected)

    class Refusing(RecordingGrid):
        def _call(self, message):
            reply = super()._call(message)
            training = (
                message.metadata.message_type == "train" and message.metadata.dst_node_id == min(self.contexts) + 1
            )
            if training and message.content["config"]["round"] in refused:
                with_scans(0)(reply.content)
            return reply

    options = replace(OPTIONS, rounds=5, quorum=2)
    result, grid = federate(three_clients, Spy(learning_rate=0.1), options, grid=Refusing)
    server = states[-1].moments  # before the fifth round
    taken = {name: grid.kept[name].after(4)["memory"] for name in "ABC"}
    for name in ("0.weight", "2.bias"):
        mean = sum(memory[name] for memory in taken.values()) / 3
        np.testing.assert_allclose(server[f"control/{name}"], mean, rtol=0, atol=1e-6)


def test_fedces_minus_score_is_of_a_model_that_the_client_has_a_part_in():
    """After a refusal, or a round without it, a client has no W_k that W has p_k of, and reports no score."""
    _, grid = federate(FIVE, "fedce", SAMPLED)
    names = {node: context.node_config["client"] for node, context in grid.contexts.items()}
    trained, seen = grid.trained(), set()
    replies = [r for r in grid.up if "arrays" in r.content]
    rounds = [(number, name) for number in range(1, 7) for name in sorted(FIVE) if number in trained[name]]
    for (number, name), reply in zip(rounds, replies, strict=True):
        assert names[reply.metadata.src_node_id] == name
        expected = number - 1 in trained[name]
        assert ("minus_score" in reply.content["metrics"]) == expected
        seen.add(expected)
    assert seen == {True, False}
    _, grid = federate(FIVE, "fedce", replace(OPTIONS, quorum=4), grid=tampering(with_scans(0)))
    replies = [r for r in grid.up if "arrays" in r.content and names[r.metadata.src_node_id] == "B"]
    assert ["minus_score" in reply.content["metrics"] for reply in replies] == [False, True, False, True]


def test_the_reason_of_a_run_that_ended_early_with_its_best_round(three_clients):
    """The round that is still made when patience is over may be the best one."""

    class Improving(RecordingGrid):
        def _call(self, message):
            reply = super()._call(message)
            if reply.content.get("metrics") and "validation_loss" in reply.content["metrics"]:
                number = message.content["config"]["round"] - (message.metadata.message_type == "train")
                reply.content["metrics"]["validation_loss"] = {1: 0.5, 2: 0.6, 3: 0.7, 4: 0.1}[number]
            return reply

    result, _ = federate(three_clients, options=replace(OPTIONS, rounds=9, patience=2), grid=Improving)
    assert result.best_round == 4
    assert result.reason.endswith("ended after round 4, 2 or more rounds before it without a better one")
