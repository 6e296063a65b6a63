"""Every strategy of Flower's that is a rule here, too: both are told the same updates over several rounds, in float64.

Where the two differ by choice, a test shows by what.
"""

import numpy as np
import pytest
from flower_replies import EmptyGrid, as_record, as_replies, tell_current_model
from flwr.app import ConfigRecord
from flwr.serverapp import strategy

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.aggregation.rule import Update

SHAPES = {"w": (40, 6), "b": (6,)}
KEY = {"weighted_by_key": "scans"}
ADAPTIVE = {"eta": 0.05, "tau": 0.01}
BETAS = {"beta_1": 0.8, "beta_2": 0.95}
OURS = {"learning_rate": 0.05, "tau": 0.01, "initial": 0}  # Flower starts the second moment from 0

# name: rule, its options, Flower's strategy, how many clients, whether they have equal numbers of scans
PAIRS = {
    "fedavg": ("fedavg", {}, lambda: strategy.FedAvg(**KEY), 4, False),
    # What FedProx changes is on the client, which Flower leaves to its users: test_drift_corrections.py has it by hand.
    "fedprox": ("fedprox", {"mu": 0.3}, lambda: strategy.FedProx(proximal_mu=0.3, **KEY), 4, False),
    "fedavgm": (
        *("fedavgm", {"momentum": 0.7, "learning_rate": 0.8}),
        lambda: strategy.FedAvgM(server_momentum=0.7, server_learning_rate=0.8, **KEY),
        *(3, False),
    ),
    "fedadam": (
        *("fedadam", OURS | {"beta1": 0.8, "beta2": 0.95, "bias_correction": True}),
        lambda: strategy.FedAdam(**ADAPTIVE, **BETAS, **KEY),
        *(3, False),
    ),
    "fedyogi": (
        *("fedyogi", OURS | {"beta1": 0.8, "beta2": 0.95}),
        lambda: strategy.FedYogi(**ADAPTIVE, **BETAS, **KEY),
        *(3, False),
    ),
    "fedadagrad": ("fedadagrad", OURS, lambda: strategy.FedAdagrad(**ADAPTIVE, **KEY), 3, False),
    "qfedavg": (
        *("qfedavg", {"q": 1.5, "learning_rate": 0.2}),
        lambda: strategy.QFedAvg(client_learning_rate=0.2, q=1.5, train_loss_key="received_loss", **KEY),
        *(4, False),
    ),
    "median of an odd number": ("median", {}, lambda: strategy.FedMedian(**KEY), 5, False),
    "median of an even number": ("median", {}, lambda: strategy.FedMedian(**KEY), 6, False),
    "trimmed mean": ("trimmed_mean", {"trim": 0.3}, lambda: strategy.FedTrimmedAvg(beta=0.3, **KEY), 7, False),
    "krum": ("krum", {"byzantine": 2}, lambda: strategy.Krum(num_malicious_nodes=2, **KEY), 7, False),
    "multi_krum": (
        *("multi_krum", {"byzantine": 1, "select": 4}),
        lambda: strategy.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4, **KEY),
        *(6, True),
    ),
    "bulyan of an odd number": ("bulyan", {"byzantine": 1}, lambda: strategy.Bulyan(num_malicious_nodes=1, **KEY), 7, True),
    "bulyan of an even number": ("bulyan", {"byzantine": 1}, lambda: strategy.Bulyan(num_malicious_nodes=1, **KEY), 8, True),
    "bulyan of two wrong ones": ("bulyan", {"byzantine": 2}, lambda: strategy.Bulyan(num_malicious_nodes=2, **KEY), 12, True),
}  # fmt: skip
OTHERS = {
    "FedXgbBagging": "trees",
    "FedXgbCyclic": "trees",
    "DifferentialPrivacyClientSideAdaptiveClipping": "noise around a strategy",
    "DifferentialPrivacyClientSideFixedClipping": "noise around a strategy",
    "DifferentialPrivacyServerSideAdaptiveClipping": "noise around a strategy",
    "DifferentialPrivacyServerSideFixedClipping": "noise around a strategy",
    "Strategy": "the base of all",
    "Result": "what a run returns",
}


def rounds_of(clients, equal, rounds=6, seed=0):
    """The updates, losses and scans of every round; one client goes far off in one round, so that robust rules have a choice."""
    generator = np.random.default_rng(seed)
    for number in range(rounds):
        steps = [{n: 0.1 * generator.normal(size=s) for n, s in SHAPES.items()} for _ in range(clients)]
        far = number % clients
        steps[far] = {name: 3 * step for name, step in steps[far].items()}
        scans = [7] * clients if equal else generator.integers(2, 40, clients).tolist()
        yield steps, generator.uniform(0.1, 2, clients).tolist(), scans


def told(flowers, number, model, steps, losses, scans):
    """Flower's next model."""
    tell_current_model(flowers, model)
    replies = as_replies([{n: model[n] + step[n] for n in SHAPES} for step in steps], scans)
    for reply, loss in zip(replies, losses, strict=True):
        reply.content["metrics"]["received_loss"] = loss
    record, _ = flowers.aggregate_train(number, replies)
    return {name: array.numpy() for name, array in record.items()}


@pytest.mark.parametrize("name", PAIRS)
def test_agrees_with_flower_over_several_rounds(name):
    rule, options, flowers, clients, equal = PAIRS[name]
    rule, flowers, names = build_rule(rule, **options), flowers(), [f"client{k:02d}" for k in range(clients)]
    generator = np.random.default_rng(99)
    start = ours = theirs = {n: generator.normal(size=shape) for n, shape in SHAPES.items()}
    state = rule.init(ours, names)
    for number, (steps, losses, scans) in enumerate(rounds_of(clients, equal), start=1):
        updates = [
            Update(*each[:3], {"received_loss": each[3]}) for each in zip(names, steps, scans, losses, strict=True)
        ]
        state, ours, _ = rule.apply(state, updates)
        # Flower's Adam corrects for one round more than there have been; the others do not look at the number.
        theirs = told(flowers, number - 1, theirs, steps, losses, scans)
        for tensor in SHAPES:
            np.testing.assert_allclose(ours[tensor], theirs[tensor], rtol=0, atol=1e-12)
    assert max(np.abs(ours[tensor] - start[tensor]).max() for tensor in SHAPES) > 0.01


def test_every_strategy_of_flower_is_compared_or_is_no_rule():
    compared = {type(flowers()).__name__ for _, _, flowers, *_ in PAIRS.values()}
    assert compared | set(OTHERS) == {name for name in dir(strategy) if name[0].isupper()}


def one_round(rule, flowers, clients):
    ((steps, losses, scans),) = rounds_of(clients, True, rounds=1)
    start, names = {n: np.zeros(shape) for n, shape in SHAPES.items()}, [f"client{k}" for k in range(clients)]
    updates = [Update(*each, {"received_loss": 1.0}) for each in zip(names, steps, scans, strict=True)]
    _, ours, _ = rule.apply(rule.init(start, names), updates)
    return ours, told(flowers, 1, start, steps, losses, scans), steps


def test_of_few_clients_flowers_trimmed_mean_trims_none_and_ours_one_at_each_end():
    ours, theirs, steps = one_round(build_rule("trimmed_mean", trim=0.2), strategy.FedTrimmedAvg(beta=0.2, **KEY), 4)
    values = np.sort([step["w"] for step in steps], axis=0)
    np.testing.assert_allclose(theirs["w"], values.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(ours["w"], values[1:3].mean(axis=0), atol=1e-12)


def test_flowers_adam_corrects_for_a_round_more_in_its_first_round():
    options = {"learning_rate": 0.05, "initial": 0, "tau": 1e-9}
    rule = build_rule("fedadam", bias_correction=True, **options)
    ours, theirs, _ = one_round(rule, strategy.FedAdam(eta=0.05, tau=1e-9, **KEY), 3)
    # m / sqrt(v) is the same, so the steps are as the corrections: ours makes the first one eta, theirs that of round 2.
    np.testing.assert_allclose(np.abs(ours["w"]), 0.05, rtol=1e-4)
    np.testing.assert_allclose(
        theirs["w"] / ours["w"], np.sqrt((1 - 0.99**2) / (1 - 0.99)) * 0.1 / (1 - 0.9**2), rtol=1e-4
    )


def test_flowers_multi_krum_counts_scans_and_ours_does_not():
    """What a client claims of itself must not give it more say."""
    rule, flowers = build_rule("multi_krum", byzantine=0, select=3), strategy.MultiKrum(num_nodes_to_select=3, **KEY)
    steps = [{"w": np.full(2, value), "b": np.zeros(1)} for value in (0.0, 1.0, 5.0)]
    model = {"w": np.zeros(2), "b": np.zeros(1)}
    _, ours, _ = rule.apply(
        rule.init(model, "abc"), [Update(c, s, n) for c, s, n in zip("abc", steps, (1, 1, 98), strict=True)]
    )
    tell_current_model(flowers, model)
    theirs, _ = flowers.aggregate_train(1, as_replies(steps, (1, 1, 98)))
    np.testing.assert_allclose(ours["w"], 2)
    np.testing.assert_allclose(theirs["w"].numpy(), 4.91)


def test_with_too_few_clients_flower_skips_bulyan_and_ours_says_so():
    flowers = strategy.Bulyan(num_malicious_nodes=1, **KEY)
    assert flowers.aggregate_train(1, as_replies([{"w": np.zeros(1)}] * 6, [1] * 6)) == (None, None)
    with pytest.raises(StudyError, match="bulyan: with byzantine 1 it needs 7 clients, there are 6"):
        build_rule("bulyan", byzantine=1).check_round(6)


def test_flowers_fedprox_tells_its_clients_the_same_factor():
    flowers, config = strategy.FedProx(proximal_mu=0.3, **KEY), ConfigRecord()
    flowers.fraction_train = 0.0
    list(flowers.configure_train(1, as_record({"w": np.zeros(1)}), config, EmptyGrid()))
    assert config["proximal-mu"] == build_rule("fedprox", mu=0.3).mu
