import numpy as np
import pytest
from flower_replies import as_replies
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.aggregation.lora import FedIT, FlexLoRA
from fedbrain.federated.aggregation.optimizers import FedAdam, FedAvgM, FedYogi
from fedbrain.federated.aggregation.robust import Krum, Median, MultiKrum, TrimmedMean
from fedbrain.federated.aggregation.rule import AdaptedLayer, Difference, Update
from fedbrain.registry import names


def updates_of(deltas, scans):
    return [
        Update(client, {"w": np.array(delta)}, count)
        for client, delta, count in zip("abcdef", deltas, scans, strict=False)
    ]


@pytest.mark.parametrize(
    ("name", "expected", "weights"),
    [("simpleavg", [11.0, 22.5, 30.0], [0.5, 0.5]), ("fedavg", [11.5, 21.25, 30.0], [0.25, 0.75])],
)
def test_by_hand(name, expected, weights):
    rule = build_rule(name)
    state = rule.init({"w": np.array([10.0, 20.0, 30.0], dtype=np.float32)}, ["a", "b"])
    state, tensors, by_client = rule.apply(state, updates_of([[0.0, 5.0, 0.0], [2.0, 0.0, 0.0]], [1, 3]))
    assert tensors["w"].tolist() == expected
    assert tensors["w"].dtype == np.float32
    assert by_client == dict(zip("ab", weights))
    assert state.round == 1
    assert state.tensors is tensors


RULES = {name: build_rule(name) for name in names("aggregation")}
RULES |= {rule.__name__: rule() for rule in (FedAvgM, FedAdam, FedYogi, Median, TrimmedMean, Krum, MultiKrum)}
RULES |= {rule.__name__: rule() for rule in (FedIT, FlexLoRA)}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_order_of_updates_does_not_change_a_bit(rule):
    generator = np.random.default_rng(0)
    scalars = {"minus_score": 0.7, "local_score": 0.6, "received_loss": 0.5}
    shapes = {"w": 1000, "b": (3, 4), "layer.lora_A.default.weight": (2, 30), "layer.lora_B.default.weight": (20, 2)}
    updates = [
        Update(
            client, deltas := {n: generator.normal(size=shape) for n, shape in shapes.items()}, scans, scalars, deltas
        )
        for client, scans in zip("abcde", (3, 50, 7, 11, 2))
    ]
    start = {name: np.ones(shape) for name, shape in shapes.items()}  # float64 hides no bit of the sums
    factors = [name for name in shapes if "lora" in name]
    rule = rule.fitted({factors[0]: AdaptedLayer(factors[1], "layer.base_layer.weight", (0, 20), 2.0)})
    start |= {name: np.ones((20, 30)) for name in rule.merged}
    results = []
    for order in (updates, updates[::-1], [updates[i] for i in (2, 0, 4, 1, 3)]):
        state = rule.init(start, "abcde")
        for _ in range(3):
            state, tensors, weights = rule.apply(state, order)
        results.append(({name: tensor.tobytes() for name, tensor in tensors.items()}, sorted(weights.items())))
    assert results[0] == results[1] == results[2]


sizes = st.floats(2**-16, 100, width=32)  # exponents within what float64 holds beyond float32: then nothing is lost
values = st.one_of(st.just(0.0), sizes, sizes.map(lambda value: -value))


@given(before=arrays(np.float32, 5, elements=values), after=arrays(np.float32, 5, elements=values))
def test_one_client_gets_its_own_model_back_to_the_bit(before, after):
    rule = build_rule("fedavg")
    update = Update("a", Difference({"w": after}, {"w": before}), 9)
    _, tensors, _ = rule.apply(rule.init({"w": before}, ["a"]), [update])
    np.testing.assert_array_equal(tensors["w"], after)


def test_agrees_with_flowers_fedavg_on_the_same_replies():
    generator = np.random.default_rng(1)
    before = {name: generator.normal(size=shape).astype(np.float32) for name, shape in (("w", (40, 6)), ("b", (6,)))}
    models = [
        {name: tensor + generator.normal(size=tensor.shape).astype(np.float32) for name, tensor in before.items()}
        for _ in range(4)
    ]
    scans = [5, 17, 2, 30]

    rule = build_rule("fedavg")
    updates = [Update(c, Difference(model, before), n) for c, model, n in zip("abcd", models, scans)]
    _, ours, _ = rule.apply(rule.init(before, "abcd"), updates)

    theirs, _ = FlowerFedAvg(weighted_by_key="scans").aggregate_train(1, as_replies(models, scans))
    for name in before:
        np.testing.assert_allclose(ours[name], theirs[name].numpy(), rtol=0, atol=3e-7)


def test_unknown_names_and_options_are_told():
    with pytest.raises(StudyError, match="did you mean fedavg"):
        build_rule("fedavgg")
    with pytest.raises(StudyError, match="fedce: unknown option versoin; known: version, combine"):
        build_rule("fedce", versoin="2.3")
    with pytest.raises(StudyError, match="version"):
        build_rule("fedce", version="2.4")
    with pytest.raises(StudyError, match="penalty"):
        build_rule("rate_my_lora", penalty="square")
