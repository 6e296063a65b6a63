import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.aggregation.fedce import leave_one_out_cosines
from fedbrain.federated.aggregation.rule import Update

DELTAS = [[[1, 0], [0, 1], [1, 1]], [[1, 0], [0, 1], [-1, 0.5]], [[0.5, 0.2], [0.1, 1], [-1, 0.5]]]
SCORES = [None, [0.8, 0.6, 0.9], [0.85, 0.7, 0.9]]
GOLDEN = {  # of the authors' public code, three clients, three rounds
    ("2.9", "plus"): [
        [0.416666, 0.416666, 0.166667],
        [0.373503, 0.329014, 0.297483],
        [0.381124, 0.303147, 0.315729],
    ],
    ("2.3", "plus"): [
        [0.416458, 0.416458, 0.167083],
        [0.427155, 0.258696, 0.314149],
        [0.414681, 0.262730, 0.322589],
    ],
    ("2.3", "times"): [
        [0.499500, 0.499500, 0.001000],
        [0.532335, 0.162901, 0.304763],
        [0.515730, 0.159228, 0.325042],
    ],
}


def update(client, delta, score=None, scans=1):
    scalars = {} if score is None else {"minus_score": score}
    return Update(client, {"w": np.array(delta, dtype=float)}, scans, scalars)


def run(rule, deltas, scores, scans=(1, 1, 1)):
    """The weights of every round."""
    state, rounds = rule.init({"w": np.zeros(2, np.float32)}, "abc"), []
    for round_deltas, round_scores in zip(deltas, scores):
        reported = round_scores or [None] * 3
        updates = [update(*values) for values in zip("abc", round_deltas, reported, scans)]
        state, _, weights = rule.apply(state, updates)
        rounds.append([weights[client] for client in "abc"])
    return rounds


@pytest.mark.parametrize(("version", "combine"), GOLDEN)
def test_golden_values(version, combine):
    weights = run(build_rule("fedce", version=version, combine=combine), DELTAS, SCORES)
    np.testing.assert_allclose(weights, GOLDEN[version, combine], rtol=0, atol=1.01e-6)


def written_out(version, combine, deltas, scores):
    """The weights of every round by the published formulas, in plain arithmetic on lists, apart from ours."""

    def cosine(one, other):
        norms = [sum(value * value for value in vector) ** 0.5 for vector in (one, other)]
        return sum(a * b for a, b in zip(one, other)) / (norms[0] * norms[1]) if min(norms) else 0.0

    def normal(values):
        return [value / sum(values) for value in values]

    weights, cosines, minus, rounds = [1 / 3] * 3, [[], [], []], [[], [], []], []
    for round_deltas, round_scores in zip(deltas, scores):
        mixture = weights if version == "2.9" else [1 / 3] * 3
        total = [sum(q * delta[i] for q, delta in zip(mixture, round_deltas)) for i in range(2)]
        for k, delta in enumerate(round_deltas):
            cosines[k].append(cosine(delta, [total[i] - mixture[k] * delta[i] for i in range(2)]))
            minus[k].append(round_scores[k] if round_scores else 0.0)
        in_gradients, in_data = ([1 - sum(past) / len(past) for past in pasts] for pasts in (cosines, minus))
        if version == "2.9":
            parts = [normal([max(value, 1e-6) for value in values]) for values in (in_gradients, in_data)]
        else:
            parts = [[max(value, 1e-3) for value in normal(values)] for values in (in_gradients, in_data)]
        both = normal([g + e if combine == "plus" else g * e for g, e in zip(*parts)])
        weights = both if version == "2.9" else [max(value, 1e-3) for value in both]
        rounds.append(weights)
    return rounds


@pytest.mark.parametrize("version", ["2.9", "2.3"])
@pytest.mark.parametrize("combine", ["plus", "times"])
def test_both_versions_and_combinations_agree_with_the_formulas_written_out(version, combine):
    generator = np.random.default_rng(5)
    deltas = DELTAS + generator.normal(size=(9, 3, 2)).tolist()
    scores = SCORES + generator.uniform(0.1, 0.9, (9, 3)).tolist()
    expected = written_out(version, combine, deltas, scores)
    if (version, combine) in GOLDEN:  # the formulas are those of the authors' code
        np.testing.assert_allclose(expected[:3], GOLDEN[version, combine], rtol=0, atol=1.01e-6)
    np.testing.assert_allclose(
        run(build_rule("fedce", version=version, combine=combine), deltas, scores), expected, rtol=1e-12
    )


def test_the_size_of_a_client_plays_no_part():
    rule = build_rule("fedce")
    assert run(rule, DELTAS, SCORES, (1, 1, 1)) == run(rule, DELTAS, SCORES, (500, 1, 20))


def test_cosines_by_hand():
    updates = [update("a", [3, 0]), update("b", [3, 4]), update("c", [0, 0])]
    # a against .25 b (+ 0): 3/5; b against .5 a: 3/5; c has no direction.
    np.testing.assert_allclose(leave_one_out_cosines(updates, np.array([0.5, 0.25, 0.25])), [0.6, 0.6, 0])


def test_updates_that_cancel_have_cosine_zero():
    updates = [update("a", [0.1, 0.7]), update("b", [0.3, -0.9]), update("c", [-0.3, 0.9])]
    assert leave_one_out_cosines(updates, np.array([1 / 3] * 3))[0] == 0


def test_the_global_step_uses_the_weights():
    rule = build_rule("fedce")
    start = np.array([7.0, -2.0], np.float32)
    updates = [update("a", [1, 0]), update("b", [0, 1]), update("c", [1, 1])]
    _, tensors, weights = rule.apply(rule.init({"w": start}, "abc"), updates)
    expected = start + sum(weights[u.client] * u.delta["w"] for u in updates)
    np.testing.assert_allclose(tensors["w"], expected, rtol=1e-7)


finite = st.floats(-5, 5, allow_subnormal=False)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(finite, finite), min_size=3, max_size=3),
            st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=3, max_size=3),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["plus", "times"]),
)
def test_weights_of_version_2_9_are_positive_and_sum_to_one(rounds, combine):
    deltas, scores = zip(*rounds)
    for weights in run(build_rule("fedce", combine=combine), deltas, scores):
        assert min(weights) > 0
        assert sum(weights) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("version", ["2.9", "2.3"])
def test_a_client_without_a_score_takes_the_mean_of_the_others(version):
    rule = build_rule("fedce", version=version)
    without = run(rule, DELTAS, [None, [0.8, 0.6, None], [0.9, None, 0.7]])
    filled = run(rule, DELTAS, [None, [0.8, 0.6, 0.7], [0.9, 0.8, 0.7]])
    np.testing.assert_allclose(without, filled, rtol=1e-12)


def test_a_round_without_one_client_goes_on():
    rule = build_rule("fedce")
    state = rule.init({"w": np.zeros(2, np.float32)}, "abc")
    state, _, _ = rule.apply(state, [update("a", [1, 0]), update("b", [0, 1]), update("c", [1, 1])])
    state, _, weights = rule.apply(state, [update("a", [1, 0], 0.5), update("c", [1, 1], 0.5)])
    assert set(weights) == {"a", "c"}
    assert sum(weights.values()) == pytest.approx(1)
    _, _, weights = rule.apply(state, [update("a", [1, 0], 0.5), update("b", [0, 1], 0.5), update("c", [1, 1], 0.5)])
    assert sum(weights.values()) == pytest.approx(1)
