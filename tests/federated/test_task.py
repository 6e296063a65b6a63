import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_clients import FEATURES, build_small_model, make_client, make_samples
from torch import nn
from torch.nn import functional

from fedbrain.errors import StudyError
from fedbrain.evaluation.metrics import balanced_accuracy
from fedbrain.federated.task import (
    TrainingOptions,
    class_weights,
    derive_seed,
    evaluate,
    is_better,
    mean_recall,
    minus_model,
    round_generator,
    train,
    train_alone,
)


def parameters_of(model):
    return torch.cat([parameter.detach().ravel() for parameter in model.parameters()])


@pytest.mark.parametrize("kind", ["none", "balanced"])
def test_train_is_a_plain_loop_with_torchs_adamw_to_the_bit(kind):
    samples = make_samples(13, seed=3, tag="s", labels=[0] * 9 + [1] * 4)
    options = TrainingOptions(local_epochs=2, batch_size=4, learning_rate=0.01, weight_decay=0.1, class_weights=kind)
    ours, theirs = build_small_model(), build_small_model()
    loss = train(ours, samples, options, round_generator(1, "A", 4), "cpu")

    weights = torch.tensor([13 / 18, 13 / 8]) if kind == "balanced" else torch.ones(2)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    generator, losses = round_generator(1, "A", 4), []
    for _ in range(2):
        order = torch.randperm(13, generator=generator)
        for start in range(0, 13, 4):
            batch = order[start : start + 4]
            each = functional.cross_entropy(theirs(samples.x[batch].float()), samples.y[batch], reduction="none")
            each = each * weights[samples.y[batch]]
            losses += each.tolist()
            optimizer.zero_grad()
            each.mean().backward()
            optimizer.step()
    assert torch.equal(parameters_of(ours), parameters_of(theirs))
    assert loss == pytest.approx(np.mean(losses), rel=1e-6)


def test_training_depends_on_seed_client_and_round_only():
    client = make_client("A")
    options = TrainingOptions(batch_size=2)

    def after(seed, name, number, disturb=0):
        torch.manual_seed(disturb)  # the global generator must not matter
        model = nn.Sequential(nn.Dropout(0.5), build_small_model())
        train(model, client.train, options, round_generator(seed, name, number), "cpu")
        return parameters_of(model)

    reference = after(0, "A", 1)
    assert torch.equal(reference, after(0, "A", 1, disturb=99))
    for other in (after(1, "A", 1), after(0, "B", 1), after(0, "A", 2)):
        assert not torch.equal(reference, other)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(build_small_model(), make_samples(6, seed=0, tag="s"), TrainingOptions(), round_generator(0, "A", 1), "cpu")
    assert torch.equal(torch.rand(3), expected)


def test_frozen_parameters_do_not_move():
    model = build_small_model()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone(), model[2].weight.clone()
    train(model, make_samples(6, seed=0, tag="s"), TrainingOptions(), round_generator(0, "A", 1), "cpu")
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[1])


@pytest.mark.parametrize("count", [1, 5])
def test_a_client_with_one_class_trains_towards_it(count):
    samples = make_samples(count, seed=0, tag="s", labels=[1] * count)
    model = build_small_model()
    before = evaluate(model, samples).scores
    train(model, samples, TrainingOptions(local_epochs=5), round_generator(0, "A", 1), "cpu")
    assert (evaluate(model, samples).scores > before).all()


def test_separable_scans_are_learnt():
    train_scans, test_scans = (make_samples(60, seed=seed, tag="s", effect=4.0) for seed in (0, 1))
    model = build_small_model()
    train(model, train_scans, TrainingOptions(local_epochs=30, learning_rate=0.01), round_generator(0, "A", 1), "cpu")
    assert evaluate(model, test_scans).balanced_accuracy > 0.95


def test_no_scans():
    empty = make_samples(0, seed=0, tag="s")
    assert evaluate(build_small_model(), empty) is None
    with pytest.raises(ValueError, match="no training scans"):
        train(build_small_model(), empty, TrainingOptions(), round_generator(0, "A", 1), "cpu")


def test_a_loss_that_is_not_finite_raises():
    samples = make_samples(4, seed=0, tag="s")
    samples.x[2, 1] = math.nan
    with pytest.raises(FloatingPointError, match="learning_rate"):
        train(build_small_model(), samples, TrainingOptions(), round_generator(0, "A", 1), "cpu")


def test_evaluation_by_hand():
    model = nn.Linear(FEATURES, 2, bias=False)
    nn.init.zeros_(model.weight)
    model.weight.data[1, 0] = 1.0  # logit of label 1 is the first feature, of label 0 zero
    samples = make_samples(3, seed=0, tag="s", labels=[0, 0, 1])
    samples.x[:, 0] = torch.tensor([-1.0, 2.0, 3.0])
    result = evaluate(model, samples)
    scores = 1 / (1 + np.exp(-np.array([-1.0, 2.0, 3.0])))
    np.testing.assert_allclose(result.scores, scores, rtol=1e-6)
    assert result.loss == pytest.approx(-np.mean(np.log([1 - scores[0], 1 - scores[1], scores[2]])), rel=1e-6)
    assert result.balanced_accuracy == 0.75


def test_mean_recall_of_one_class():
    assert mean_recall(np.array([1, 1, 1, 1]), np.array([0.9, 0.5, 0.2, 0.7])) == 0.75
    assert mean_recall(np.array([0, 0]), np.array([0.9, 0.2])) == 0.5


def test_mean_recall_is_the_evaluations_balanced_accuracy_where_that_exists():
    generator = np.random.default_rng(0)
    for _ in range(20):
        labels, scores = generator.integers(0, 2, 12), generator.integers(0, 5, 12) / 4  # 0.5 is among the scores
        if labels.min() != labels.max():
            assert mean_recall(labels, scores) == pytest.approx(balanced_accuracy(labels, scores))


def test_balanced_weights_have_mean_one():
    for labels in ([0, 0, 0, 1], [1, 1], [0]):
        labels = torch.tensor(labels)
        weights = class_weights(labels, "balanced")
        assert weights[labels].mean() == pytest.approx(1)
        per_class = [weights[label] * (labels == label).sum() for label in labels.unique()]
        assert max(per_class) == pytest.approx(min(per_class))


def test_minus_model_takes_the_own_part_out():
    parts = [torch.tensor([1.0, 5.0]), torch.tensor([3.0, -1.0]), torch.tensor([0.5, 2.0])]
    weights = [0.2, 0.3, 0.5]
    whole = {"w": sum(p * part for p, part in zip(weights, parts))}
    without = minus_model(whole, {"w": parts[0]}, weights[0])["w"]
    torch.testing.assert_close(without, (0.3 * parts[1] + 0.5 * parts[2]) / 0.8)


def test_derived_seeds_differ_and_stay():
    seeds = {derive_seed(seed, "train", client, number) for seed in range(3) for client in "AB" for number in range(5)}
    assert len(seeds) == 30
    assert derive_seed(0, "train", "A", 1) == derive_seed(0, "train", "A", 1)
    assert derive_seed(0, "1", "2") != derive_seed(0, "12")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_ties_stay_with_the_earlier_round():
    assert is_better(1.0, None, "loss")
    assert not is_better(1.0, 1.0, "loss")
    assert not is_better(1.0, 1.0, "balanced_accuracy")
    assert is_better(0.9, 1.0, "loss")
    assert is_better(1.1, 1.0, "balanced_accuracy")
    assert not is_better(math.nan, None, "loss")
    assert not is_better(None, None, "loss")


def test_alone_goes_on_from_round_to_round():
    client = make_client("A", validation=0)
    options = TrainingOptions(rounds=3)
    rounds = list(train_alone(build_small_model(), client, options, 0, "cpu"))
    assert [done.round for done in rounds] == [1, 2, 3]
    assert [done.validation for done in rounds] == [None] * 3
    model = build_small_model()
    model.load_state_dict(rounds[1].tensors)
    train(model, client.train, options, round_generator(0, "A", 3), "cpu")
    assert torch.equal(parameters_of(model), torch.cat([t.ravel() for t in rounds[2].tensors.values()]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rat": 0.1}, "did you mean learning_rate"),
        ({"rounds": 0}, "rounds must be a whole number"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"learning_rate": 0}, "learning_rate must be a number above 0"),
        ({"learning_rate": "1e-3"}, "learning_rate"),
        ({"weight_decay": -1}, "weight_decay must be a number from 0"),
        ({"class_weights": "auto"}, "class_weights must be one of balanced, none"),
        ({"selection": "auc"}, "selection must be one of"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(StudyError, match=message):
        TrainingOptions.of(options)


def test_a_local_job_never_imports_flower_nor_the_compiler():
    code = (
        "import sys; from small_clients import *; import torch; from fedbrain.federated import cell, task; "
        "task.train(build_small_model(), make_samples(4, seed=0, tag='s'), task.TrainingOptions(), torch.Generator(), 'cpu');"
        "print([name for name in ('flwr', 'monai', 'ants', 'torch._dynamo') if name in sys.modules])"
    )
    environment = {"PYTHONPATH": str(__import__("pathlib").Path(__file__).parent), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
