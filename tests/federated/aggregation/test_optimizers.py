import numpy as np
import pytest
from flower_replies import as_replies, tell_current_model
from flwr.serverapp import strategy
from hypothesis import given
from hypothesis import strategies as st

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.averages import FedAvg
from fedbrain.federated.aggregation.optimizers import FedAdam, FedAvgM, FedYogi
from fedbrain.federated.aggregation.rule import Difference, Update

SCANS = (5, 17, 2)
ALL = [FedAvgM, FedAdam, FedYogi]


def one_weight(rule, updates, scans=(1, 3)):
    """The course of one weight that starts at 0, by the updates of two clients in each round."""
    state, course = rule.init({"w": np.zeros(1)}, "ab"), []
    for round_updates in updates:
        replies = [Update(c, {"w": np.array([d])}, n) for c, d, n in zip("ab", round_updates, scans)]
        state, tensors, weights = rule.apply(state, replies)
        assert weights == {"a": 0.25, "b": 0.75}
        course.append(float(tensors["w"][0]))
    return course


def test_momentum_by_hand():
    # D = 1 and 2; u = 1 and .5 + 2.
    course = one_weight(FedAvgM(momentum=0.5, learning_rate=0.1), [(4.0, 0.0), (2.0, 2.0)])
    assert course == pytest.approx([0.1, 0.1 + 0.25])


def test_adam_by_hand():
    # D = 3 and 0; m = 1.5, .75; v = .25 * 2^2 + .75 * 9 = 7.75, then 1.9375.
    rule = FedAdam(learning_rate=0.1, beta1=0.5, beta2=0.25, tau=2.0)
    first = 0.1 * 1.5 / (7.75**0.5 + 2)
    assert one_weight(rule, [(3.0, 3.0), (0.0, 0.0)]) == pytest.approx([first, first + 0.1 * 0.75 / (1.9375**0.5 + 2)])


def test_yogi_by_hand():
    # v = 1 + .75 * 9 = 7.75; then the update is smaller than v, so v = 7.75 - .75 * 4 = 4.75; m = 1.5, 1.75.
    rule = FedYogi(learning_rate=0.1, beta1=0.5, beta2=0.25, tau=1.0)
    first = 0.1 * 1.5 / (7.75**0.5 + 1)
    assert one_weight(rule, [(3.0, 3.0), (2.0, 2.0)]) == pytest.approx([first, first + 0.1 * 1.75 / (4.75**0.5 + 1)])


def test_bias_correction_by_hand():
    # Against a start from 0 it makes the first step eta D / |D|, but for tau.
    rule = FedAdam(learning_rate=0.1, initial=0, bias_correction=True, tau=1e-12)
    assert one_weight(rule, [(3.0, 3.0)]) == pytest.approx([0.1])
    assert one_weight(rule, [(-1e-3, -1e-3)]) == pytest.approx([-0.1])


def several_rounds(rule, flowers, rounds=5):
    """The largest distance between our global model and Flower's, each told the same updates."""
    generator = np.random.default_rng(0)
    shapes = {"w": (40, 6), "b": (6,)}
    ours = theirs = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    state, distance = rule.init(ours, "abc"), 0.0
    for number in range(1, rounds + 1):
        steps = [{n: 0.1 * generator.normal(size=s).astype(np.float32) for n, s in shapes.items()} for _ in SCANS]
        state, ours, _ = rule.apply(state, [Update(c, step, n) for c, step, n in zip("abc", steps, SCANS)])
        tell_current_model(flowers, theirs)
        replies = as_replies([{n: theirs[n] + step[n] for n in shapes} for step in steps], SCANS)
        # Flower's Adam corrects for one round more than there have been; the others do not look at the number.
        record, _ = flowers.aggregate_train(number - 1, replies)
        theirs = {name: array.numpy() for name, array in record.items()}
        distance = max(distance, *(float(np.abs(ours[name] - theirs[name]).max()) for name in shapes))
    return distance


def test_agrees_with_flowers_momentum():
    rule = FedAvgM(momentum=0.7, learning_rate=0.8)
    flowers = strategy.FedAvgM(weighted_by_key="scans", server_momentum=0.7, server_learning_rate=0.8)
    assert several_rounds(rule, flowers) < 3e-6


def test_agrees_with_flowers_adam():
    options = {"beta_1": 0.8, "beta_2": 0.95, "eta": 0.05, "tau": 0.01}
    rule = FedAdam(learning_rate=0.05, beta1=0.8, beta2=0.95, tau=0.01, initial=0, bias_correction=True)
    assert several_rounds(rule, strategy.FedAdam(weighted_by_key="scans", **options)) < 3e-6


def test_agrees_with_flowers_yogi():
    options = {"beta_1": 0.8, "beta_2": 0.95, "eta": 0.05, "tau": 0.01}
    rule = FedYogi(learning_rate=0.05, beta1=0.8, beta2=0.95, tau=0.01, initial=0)
    assert several_rounds(rule, strategy.FedYogi(weighted_by_key="scans", **options)) < 3e-6


def test_without_momentum_it_is_fedavg_and_one_client_gets_its_own_model_back():
    generator = np.random.default_rng(2)
    before = {"w": generator.normal(size=500).astype(np.float32)}
    after = {"w": generator.normal(size=500).astype(np.float32)}
    rule = FedAvgM(momentum=0)
    _, tensors, _ = rule.apply(rule.init(before, "a"), [Update("a", Difference(after, before), 9)])
    np.testing.assert_array_equal(tensors["w"], after["w"])
    updates = [Update(c, {"w": generator.normal(size=500)}, n) for c, n in zip("abc", SCANS)]
    ours, theirs = (r.apply(r.init(before, "abc"), updates)[1]["w"] for r in (rule, FedAvg()))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-7)


@pytest.mark.parametrize("rule", [cls() for cls in ALL])
def test_no_update_is_no_step(rule):
    start = {"w": np.array([1.0, -2.0], np.float32)}
    state = rule.init(start, "ab")
    for _ in range(3):
        state, tensors, _ = rule.apply(state, [Update(c, {"w": np.zeros(2)}, 4) for c in "ab"])
    assert tensors["w"].tolist() == [1, -2]


@pytest.mark.parametrize("rule", [cls() for cls in ALL])
def test_running_statistics_are_averaged_and_not_extrapolated(rule):
    start = {"norm.running_var": np.array([1.0], np.float32), "norm.weight": np.array([1.0], np.float32)}
    state = rule.init(start, "a")
    assert all(not name.endswith("running_var") for name in state.moments)
    update = Update("a", {"norm.running_var": np.array([-0.25]), "norm.weight": np.array([-0.25])}, 4)
    for expected in (0.75, 0.5, 0.25, 0.0):
        state, tensors, _ = rule.apply(state, [update])
        assert tensors["norm.running_var"] == expected


@given(
    updates=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6),
    rule=st.sampled_from([FedAdam(), FedYogi(initial=0)]),
)
def test_the_second_moment_never_falls_below_zero_and_a_step_is_bounded(updates, rule):
    state = rule.init({"w": np.zeros((), np.float64)}, "a")
    for update in updates:
        before = state.tensors["w"]
        state, tensors, _ = rule.apply(state, [Update("a", {"w": np.array(update)}, 1)])
        assert state.moments["second/w"] >= 0
        assert np.isfinite(tensors["w"])
        first = float(state.moments["first/w"])
        assert abs(tensors["w"] - before) <= rule.learning_rate * abs(first) / rule.tau + 1e-12


def test_apply_changes_nothing_that_it_was_given():
    for rule in (cls() for cls in ALL):
        state = rule.init({"w": np.ones(3, np.float32)}, "a")
        kept = {name: moment.tobytes() for name, moment in state.moments.items()}
        rule.apply(state, [Update("a", {"w": np.arange(3.0)}, 1)])
        assert state.round == 0
        assert {name: moment.tobytes() for name, moment in state.moments.items()} == kept
        assert state.tensors["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (FedAvgM, {"momentum": 1}, "fedavgm: momentum must be a number from 0 to below 1, it is 1"),
        (FedAvgM, {"learning_rate": 0}, "fedavgm: learning_rate must be a number above 0"),
        (FedAdam, {"tau": 0.0}, "fedadam: tau"),
        (FedAdam, {"learning_rate": "1e-2"}, "it is '1e-2'"),  # what YAML makes of 1e-2
        (FedAdam, {"bias_correction": "no"}, "bias_correction must be true or false"),
        (FedYogi, {"beta2": True}, "fedyogi: beta2"),
        (FedYogi, {"initial": -1e-9}, "fedyogi: initial must be a number from 0"),
    ],
)
def test_options_are_checked(rule, options, message):
    with pytest.raises(StudyError, match=message):
        rule(**options)


def test_yogi_takes_no_bias_correction():
    with pytest.raises(TypeError):
        FedYogi(bias_correction=True)
