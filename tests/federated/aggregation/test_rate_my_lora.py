import math

import numpy as np
import pytest

from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.aggregation.rule import Update

START = np.zeros(2, np.float32)


def two_rounds(first, second, **options):
    """Clients of 1 and 3 scans that report these accuracies; the weights of both rounds and the second step."""
    rule = build_rule("rate_my_lora", **options)
    state = rule.init({"w": START}, "ab")
    weights = []
    for accuracies in (first, second):
        before = state.tensors["w"]
        updates = [
            Update(client, {"w": np.array(delta)}, scans, {} if accuracy is None else {"local_score": accuracy})
            for client, delta, scans, accuracy in zip("ab", ([1.0, 0.0], [0.0, 1.0]), (1, 3), accuracies)
        ]
        state, tensors, by_client = rule.apply(state, updates)
        weights.append([by_client[client] for client in "ab"])
    return weights, tensors["w"] - before


def test_ratio_by_hand():
    weights, step = two_rounds([0.8, 0.5], [0.4, 0.6])  # a halves its accuracy, b gains
    assert weights[0] == [0.25, 0.75]
    assert weights[1] == pytest.approx([0.5 * 0.25, 0.75])
    np.testing.assert_allclose(step, [0.125, 0.75], rtol=1e-6)  # a penalty shrinks the step


def test_normalised_by_hand():
    weights, _ = two_rounds([0.8, 0.5], [0.4, 0.6], denominator="normalised")
    assert weights[1] == pytest.approx([0.5 / 3.5, 3 / 3.5])


def test_exp_by_hand():
    weights, _ = two_rounds([0.8, 0.5], [0.4, 0.6], penalty="exp", gamma=2.0)
    assert weights[1] == pytest.approx([math.exp(-0.8) * 0.25, 0.75])


@pytest.mark.parametrize("penalty", ["ratio", "exp"])
@pytest.mark.parametrize("denominator", ["literal", "normalised"])
def test_without_a_fall_it_is_fedavg(penalty, denominator):
    weights, _ = two_rounds([0.0, 0.5], [0.0, 0.5], penalty=penalty, denominator=denominator)
    # From 0 to 0 the ratio is 0 / 1e-6 = 0: the one place where "no fall" is penalised, by the formula as given.
    expected = [0.0, 0.75 if denominator == "literal" else 1.0] if penalty == "ratio" else [0.25, 0.75]
    assert weights[1] == pytest.approx(expected)
    weights, _ = two_rounds([0.4, 0.5], [0.4, 0.9], penalty=penalty, denominator=denominator)
    assert weights[1] == pytest.approx([0.25, 0.75])


def test_a_client_without_accuracy_is_not_penalised():
    weights, _ = two_rounds([0.8, None], [0.4, None])
    assert weights[1] == pytest.approx([0.125, 0.75])


@pytest.mark.parametrize("denominator", ["literal", "normalised"])
def test_all_at_zero_is_no_step(denominator):
    _, step = two_rounds([0.5, 0.5], [0.0, 0.0], denominator=denominator)
    assert step.tolist() == [0.0, 0.0]


def test_the_comparison_is_with_the_round_before_and_not_with_the_best():
    rule = build_rule("rate_my_lora")
    state, weights = rule.init({"w": START}, "a"), []
    for accuracy in (0.8, 0.4, 0.4, 0.3):
        state, _, by_client = rule.apply(state, [Update("a", {"w": np.ones(2)}, 5, {"local_score": accuracy})])
        weights.append(by_client["a"])
    assert weights == pytest.approx([1, 0.5, 1, 0.75])
