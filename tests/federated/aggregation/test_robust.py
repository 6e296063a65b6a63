import numpy as np
import pytest
from flower_replies import as_replies
from flwr.serverapp import strategy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation import robust
from fedbrain.federated.aggregation.averages import SimpleAvg
from fedbrain.federated.aggregation.robust import Krum, Median, MultiKrum, TrimmedMean, squared_distances
from fedbrain.federated.aggregation.rule import Difference, Update

ALL = [Median(), TrimmedMean(), Krum(), MultiKrum()]


def step(rule, deltas, start=None):
    """The global step and the weights, by clients a, b, c ... with these updates."""
    clients = "abcdefghij"[: len(deltas)]
    start = np.zeros(np.shape(deltas[0])) if start is None else start
    updates = [Update(client, {"w": np.array(delta, float)}, 7) for client, delta in zip(clients, deltas, strict=True)]
    _, tensors, weights = rule.apply(rule.init({"w": start}, clients), updates)
    return (tensors["w"] - start).tolist(), [weights[client] for client in clients]


def test_median_by_hand():
    # Three clients: 2, 5, 0 are the medians, of a, b, and the tied zeros of b and c.
    assert step(Median(), [[2, 9, -1], [1, 5, 0], [3, -4, 0]]) == (
        [2, 5, 0],
        pytest.approx([1 / 3, 1.5 / 3, 0.5 / 3]),
    )
    # Four: the mean of the middle two.
    assert step(Median(), [[0.0], [8.0], [2.0], [4.0]]) == ([3], [0, 0, 0.5, 0.5])


def test_trimmed_mean_by_hand():
    moved, weights = step(TrimmedMean(), [[10, 1], [1, 1], [2, 1], [3, 1], [-50, 1]])
    assert moved == [2, 1]
    assert weights == pytest.approx([0.1, (1 / 3 + 0.2) / 2, (1 / 3 + 0.2) / 2, (1 / 3 + 0.2) / 2, 0.1])


@pytest.mark.parametrize(
    ("clients", "trim", "cut"), [(2, 0.4, 0), (3, 0.1, 1), (4, 0.2, 1), (6, 0.34, 2), (8, 0.25, 2)]
)
def test_how_many_are_trimmed(clients, trim, cut):
    values = 2.0 ** np.arange(clients)
    expected = values[cut : clients - cut].mean()
    assert step(TrimmedMean(trim), values[:, None])[0] == pytest.approx([expected])


def test_krum_by_hand():
    # On a line at 0, 1, 1.5, 3, 100 with f = 1: two neighbours each; scores 1 + 2.25, 1 + .25, .25 + 2.25, 2.25 + 4, huge.
    deltas = [[0.0], [1.0], [1.5], [3.0], [100.0]]
    assert step(Krum(byzantine=1), deltas) == ([1], [0, 1, 0, 0, 0])
    assert step(MultiKrum(byzantine=1, select=2), deltas) == ([1.25], [0, 0.5, 0.5, 0, 0])
    assert step(MultiKrum(byzantine=1), deltas) == ([1.375], [0.25, 0.25, 0.25, 0.25, 0])
    # With f = 0 three neighbours count: 1 + 2.25 + 9, 1 + .25 + 4, 2.25 + .25 + 2.25.
    assert step(Krum(byzantine=0), deltas)[1] == [0, 0, 1, 0, 0]


def test_krum_takes_the_most_that_the_clients_allow():
    deltas = [[0.0], [1.0], [1.5], [3.0], [100.0]]
    assert step(Krum(), deltas) == step(Krum(byzantine=1), deltas)
    assert step(MultiKrum(), deltas[:4])[1] == [0.25] * 4


def test_ties_go_to_the_first_name():
    assert step(Krum(), [[0.0], [0.0], [0.0]])[1] == [1, 0, 0]
    assert step(Krum(), [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])[1] == [1, 0, 0, 0]


def test_krum_needs_enough_clients():
    with pytest.raises(StudyError, match="krum: with byzantine 1 it needs 5 clients, there are 4; lower byzantine"):
        Krum(byzantine=1).init({}, "abcd")
    with pytest.raises(StudyError, match="multi_krum: with byzantine 0 it needs 3 clients, there are 2"):
        MultiKrum().init({}, "ab")
    # A round from which two of five are absent is not decided by the first name.
    state = Krum().init({"w": np.zeros(1)}, "abcde")
    with pytest.raises(StudyError, match="there are 2"):
        Krum().apply(state, [Update(c, {"w": np.zeros(1)}, 1) for c in "ab"])


def test_distances_by_hand_and_of_equal_updates():
    deltas = [{"w": np.array([3.0, 0]), "b": np.array(1.0)}, {"w": np.array([0, 4.0]), "b": np.array(1.0)}]
    distances = squared_distances([Update(c, d, 1) for c, d in zip("abc", [*deltas, deltas[0]])])
    assert distances.tolist() == [[0, 25, 0], [25, 0, 25], [0, 25, 0]]


@pytest.mark.parametrize("rule", ALL)
def test_one_client_gets_its_own_model_back_to_the_bit(rule):
    generator = np.random.default_rng(3)
    before, after = ({"w": generator.normal(size=(30, 5)).astype(np.float32)} for _ in range(2))
    _, tensors, weights = rule.apply(rule.init(before, "a"), [Update("a", Difference(after, before), 9)])
    np.testing.assert_array_equal(tensors["w"], after["w"])
    assert weights == {"a": 1.0}


@pytest.mark.parametrize("rule", ALL)
def test_equal_clients_get_their_model_back(rule):
    moved, weights = step(rule, [[1.0, -2.0]] * 5)
    assert moved == [1, -2]
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize("rule", [Median(), Krum()])
def test_of_an_odd_number_every_value_is_a_clients_own_to_the_bit(rule):
    generator = np.random.default_rng(4)
    before = {"w": generator.normal(size=300).astype(np.float32)}
    models = [{"w": generator.normal(size=300).astype(np.float32)} for _ in "abcde"]
    _, tensors, _ = rule.apply(
        rule.init(before, "abcde"), [Update(c, Difference(m, before), 1) for c, m in zip("abcde", models)]
    )
    assert (tensors["w"][None] == np.stack([model["w"] for model in models])).any(axis=0).all()


@pytest.mark.parametrize("rule", ALL)
def test_one_wrong_client_of_five_cannot_pull_the_model_away(rule):
    generator = np.random.default_rng(5)
    honest = generator.normal(size=(4, 50))
    near = [step(rule, [*honest, wrong])[0] for wrong in (np.full(50, 1e9), np.full(50, -1e9), 1e9 * honest[0])]
    assert (honest.min(axis=0) - 1e-9 <= near).all()
    assert (near <= honest.max(axis=0) + 1e-9).all()
    assert np.abs(step(SimpleAvg(), [*honest, np.full(50, 1e9)])[0]).min() > 1e8


floats = st.floats(-10, 10).map(lambda value: round(value, 1))  # many ties


@given(arrays(float, st.tuples(st.integers(1, 7), st.integers(1, 4)), elements=floats), st.floats(0.01, 0.49))
def test_weights_are_shares_and_give_the_step_of_a_single_coordinate(values, trim):
    for rule in (Median(), TrimmedMean(trim)):
        _, weights = step(rule, values)
        assert min(weights) >= 0
        assert sum(weights) == pytest.approx(1)
        moved, weights = step(rule, values[:, :1])
        assert np.dot(weights, values[:, 0]) == pytest.approx(moved[0], abs=1e-12)


def test_blocks_of_coordinates_change_nothing(monkeypatch):
    values = np.random.default_rng(6).normal(size=(5, 1000))
    whole = step(TrimmedMean(), values)
    monkeypatch.setattr(robust, "BLOCK", 77)
    parts = step(TrimmedMean(), values)
    assert whole[0] == parts[0]
    assert whole[1] == pytest.approx(parts[1])


def random_models(clients):
    generator = np.random.default_rng(7)
    shapes = {"w": (40, 6), "b": (6,)}
    return [{n: generator.normal(size=s).astype(np.float32) for n, s in shapes.items()} for _ in range(clients + 1)]


@pytest.mark.parametrize("clients", [3, 6, 7])
@pytest.mark.parametrize(
    ("rule", "flowers"),
    [
        (Median(), strategy.FedMedian()),
        (TrimmedMean(0.35), strategy.FedTrimmedAvg(beta=0.35)),
        (Krum(byzantine=0), strategy.Krum(num_malicious_nodes=0)),
        (MultiKrum(byzantine=0, select=2), strategy.MultiKrum(num_malicious_nodes=0, num_nodes_to_select=2)),
    ],
)
def test_agrees_with_flower(rule, flowers, clients):
    before, *models = random_models(clients)
    names = "abcdefg"[:clients]
    _, ours, _ = rule.apply(
        rule.init(before, names), [Update(c, Difference(m, before), 3) for c, m in zip(names, models)]
    )
    flowers.weighted_by_key = "scans"
    theirs, _ = flowers.aggregate_train(1, as_replies(models, [3] * clients))
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name].numpy(), rtol=0, atol=3e-7)


def test_krum_with_wrong_clients_agrees_with_flower():
    before, *models = random_models(7)
    rule, flowers = Krum(byzantine=2), strategy.Krum(num_malicious_nodes=2, weighted_by_key="scans")
    _, ours, _ = rule.apply(
        rule.init(before, "abcdefg"), [Update(c, Difference(m, before), 3) for c, m in zip("abcdefg", models)]
    )
    theirs, _ = flowers.aggregate_train(1, as_replies(models, [3] * 7))
    np.testing.assert_allclose(ours["w"], theirs["w"].numpy(), rtol=0, atol=3e-7)


@pytest.mark.parametrize("clients", [5, 10])
def test_agrees_with_scipy(clients):
    values = np.random.default_rng(8).normal(size=(clients, 40))
    np.testing.assert_allclose(step(TrimmedMean(0.3), values)[0], stats.trim_mean(values, 0.3, axis=0), rtol=1e-12)
    np.testing.assert_allclose(step(Median(), values)[0], np.median(values, axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (TrimmedMean, {"trim": 0.5}),
        (TrimmedMean, {"trim": 0}),
        (TrimmedMean, {"trim": "0.1"}),
        (Krum, {"byzantine": -1}),
        (Krum, {"byzantine": 1.0}),
        (MultiKrum, {"select": 0}),
        (MultiKrum, {"byzantine": True}),
    ],
)
def test_options_are_checked(rule, options):
    with pytest.raises(StudyError, match=f"{next(iter(options))} must be a (whole )?number"):
        rule(**options)
