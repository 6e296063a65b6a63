"""q-FedAvg, Bulyan and FedAdagrad by hand; their agreement with Flower's is in test_flower_agreement.py."""

import numpy as np
import pytest
from federation import OPTIONS, federate
from small_clients import build_small_model, make_client

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.aggregation.averages import SimpleAvg
from fedbrain.federated.aggregation.bulyan import Bulyan, mean_near_median
from fedbrain.federated.aggregation.rule import Update
from fedbrain.federated.task import evaluate


def step(rule, deltas, losses=None, start=None):
    """The global step and the weights by client."""
    clients = "abcdefghijk"[: len(deltas)]
    start = {"w": np.zeros(np.shape(deltas[0]))} if start is None else start
    losses = losses or [1.0] * len(deltas)
    updates = [
        Update(c, {"w": np.array(d, float)}, 3, {"received_loss": f}) for c, d, f in zip(clients, deltas, losses)
    ]
    _, tensors, weights = rule.apply(rule.init(start, clients), updates)
    return (tensors["w"] - start["w"]).tolist(), weights


def test_q_fedavg_by_hand():
    # q = 1, L = 2: gradients -2 D, norms^2 4 and 16; h = 4 + 2 * 3 = 10 and 16 + 2 * 1 = 18; step (3 * 2 * 1 + 1 * 2 * -2) / 28.
    moved, weights = step(build_rule("qfedavg", q=1, learning_rate=0.5), [[1.0], [-2.0]], [3.0, 1.0])
    assert moved == pytest.approx([2 / 28])
    assert weights == pytest.approx({"a": 6 / 28, "b": 2 / 28})


def test_with_q_zero_every_client_counts_the_same():
    deltas = np.random.default_rng(0).normal(size=(4, 30))
    moved, weights = step(build_rule("qfedavg", q=0), deltas, [0.1, 5.0, 2.0, 0.0])
    np.testing.assert_allclose(moved, step(SimpleAvg(), deltas)[0], rtol=1e-12)
    assert weights == pytest.approx(dict.fromkeys("abcd", 0.25))


def test_the_larger_q_the_more_a_badly_served_client_counts():
    for_bad = []
    for q in (0.1, 1.0, 3.0):
        _, weights = step(build_rule("qfedavg", q=q), [[1.0], [1.0]], [2.0, 0.5])
        for_bad.append(weights["a"] / weights["b"])
    assert for_bad == pytest.approx([4**0.1, 4, 64])


def test_q_fedavg_averages_running_statistics():
    start = {"w": np.zeros(1), "norm.running_var": np.ones(1)}
    rule = build_rule("qfedavg", q=2, learning_rate=0.1)
    updates = [
        Update(c, {"w": np.array([d]), "norm.running_var": np.array([v])}, 1, {"received_loss": f})
        for c, d, v, f in (("a", 1.0, 0.5, 3.0), ("b", -1.0, 100.5, 0.1))
    ]
    _, tensors, weights = rule.apply(rule.init(start, "ab"), updates)
    assert tensors["norm.running_var"].tolist() == [51.5]
    assert tensors["w"][0] == pytest.approx(weights["a"] - weights["b"])


def test_the_loss_is_of_the_model_that_was_received_on_the_training_scans(three_clients):
    rule = build_rule("qfedavg")
    _, grid = federate(three_clients, rule)
    model = build_small_model()
    for reply in grid.up:
        metrics = reply.content.metric_records.get("metrics", {})
        if "loss" in metrics:
            client = grid.contexts[reply.metadata.src_node_id].node_config["client"]
            expected = evaluate(model, three_clients[client].train).loss
            assert metrics["received_loss"] == pytest.approx(expected, rel=1e-12)
            if client == "C":
                break  # further rounds have other models
    else:
        pytest.fail("no reply")


def test_q_fedavg_learns(three_clients):
    result, _ = federate(three_clients, build_rule("qfedavg", learning_rate=0.05), OPTIONS)
    model = build_small_model()
    before = np.mean([evaluate(model, client.validation).loss for client in three_clients.values()])
    after = [row["validation_loss"] for row in result.rows if row["round"] == result.best_round]
    assert np.mean(after) < before


def test_adagrad_by_hand():
    # v = 1 + 9, then + 4; m is D.
    rule, state = build_rule("fedadagrad", learning_rate=0.1, tau=1.0), None
    state = rule.init({"w": np.zeros(1)}, "a")
    assert state.moments["second/w"] == [1]
    for delta in (3.0, -2.0):
        state, tensors, _ = rule.apply(state, [Update("a", {"w": np.array([delta])}, 1)])
    assert tensors["w"][0] == pytest.approx(0.1 * (3 / (10**0.5 + 1) - 2 / (14**0.5 + 1)))
    assert state.moments["second/w"] == [14]


def test_bulyan_by_hand():
    # f = 1 of seven: five are chosen, three count. 50 and -40 have the worst scores; of 0, 1, 2, 3, 7 the median is 2: 1, 2, 3.
    deltas = [[7.0], [50.0], [1.0], [2.0], [0.0], [3.0], [-40.0]]
    moved, weights = step(Bulyan(), deltas)
    assert moved == pytest.approx([2.0])
    assert weights == pytest.approx({"a": 0, "b": 0, "c": 1 / 3, "d": 1 / 3, "e": 0, "f": 1 / 3, "g": 0})


def test_a_client_that_is_far_off_in_one_coordinate_is_chosen_and_has_no_part_there():
    honest = np.random.default_rng(1).normal(size=(7, 400))
    honest[0, 5] += 8  # as a whole no further away than the others
    moved, weights = step(Bulyan(byzantine=1), honest)
    others = honest[1:, 5]
    assert others.min() <= moved[5] <= others.max()
    assert weights["a"] >= 0
    assert sum(weights.values()) == pytest.approx(1)


def test_the_values_nearest_the_median():
    values = np.array([[0.0, 9.0], [1.0, 1.0], [5.0, 1.0], [2.0, 1.0], [2.5, 4.0]])
    means, parts = mean_near_median(values, 3)
    assert means.tolist() == [pytest.approx(5.5 / 3), 1.0]
    assert parts.tolist() == pytest.approx([0, 2 / 3, 1 / 3, 2 / 3, 1 / 3])


def test_bulyan_of_few_is_the_simple_average_and_of_none_wrong_needs_three():
    deltas = np.random.default_rng(2).normal(size=(6, 50))
    np.testing.assert_allclose(step(Bulyan(), deltas)[0], step(SimpleAvg(), deltas)[0], rtol=1e-12)
    with pytest.raises(StudyError, match="bulyan: with byzantine 0 it needs 3 clients, there are 2; lower byzantine"):
        Bulyan().init({}, "ab")
    assert step(Bulyan(), [[3.0]]) == ([3.0], {"a": 1.0})


def test_bulyan_runs_as_a_federation_of_seven():
    clients = {name: make_client(name, train=4 + k, validation=3, seed=k) for k, name in enumerate("ABCDEFG")}
    result, _ = federate(clients, "bulyan")
    for number in range(1, OPTIONS.rounds + 1):
        weights = [row["weight"] for row in result.rows if row["round"] == number]
        assert sum(weights) == pytest.approx(1)
        assert max(weights) < 1 / 3  # three count at each coordinate, hardly ever the same


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("qfedavg", {"q": -0.1}, "qfedavg: q must be a number from 0"),
        ("qfedavg", {"learning_rate": 0}, "qfedavg: learning_rate must be a number above 0"),
        ("bulyan", {"byzantine": 1.5}, "bulyan: byzantine must be a whole number"),
        ("fedadagrad", {"tau": 0}, "fedadagrad: tau must be a number above 0"),
        ("fedadagrad", {"beta2": 0.9}, "fedadagrad: unknown option beta2"),
    ],
)
def test_wrong_options_of_these_rules_are_told(rule, options, message):
    with pytest.raises(StudyError, match=message):
        build_rule(rule, **options)
