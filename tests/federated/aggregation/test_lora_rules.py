"""Averages of low-rank adapters against dense matrices, and against peft's own idea of what an adapter adds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.averages import FedAvg
from fedbrain.federated.aggregation.lora import (
    FedIT,
    FlexLoRA,
    compact_svd,
    factor_pairs,
    residual,
    stack,
    truncate,
)
from fedbrain.federated.aggregation.rule import Difference, Update

A, B = "net.0.lora_A.default.weight", "net.0.lora_B.default.weight"
SCANS = (3, 5, 1, 8, 2, 4)
WIDTH, OUT = 96, 160


def random_factors(generator, rank, out=OUT, width=WIDTH):
    return generator.normal(size=(rank, width)), generator.normal(size=(out, rank))


def random_clients(ranks, seed=0):
    generator = np.random.default_rng(seed)
    return [random_factors(generator, rank) for rank in ranks]


def dense_mean(factors, weights):
    return sum(weight * (b @ a) for weight, (a, b) in zip(weights, factors))


def best_of_rank(matrix, rank):
    u, values, v = torch.svd(torch.tensor(matrix))
    return (u[:, :rank] * values[:rank] @ v[:, :rank].T).numpy()


def relative(error, whole):
    return np.linalg.norm(error) / np.linalg.norm(whole)


def federation(factors, head=True):
    """Global tensors of the clients' mean, and an update for each client, in float32 as they travel."""
    rank = factors[0][0].shape[0]
    start = {A: random_clients([rank], seed=9)[0][0].astype(np.float32), B: np.zeros((OUT, rank), np.float32)}
    if head:
        start["head.weight"] = np.ones((2, 3), np.float32)
    updates = []
    for k, (a, b) in enumerate(factors):
        after = {A: a.astype(np.float32), B: b.astype(np.float32)}
        if head:
            after["head.weight"] = np.full((2, 3), k, np.float32)
        updates.append(Update("abcdef"[k], Difference(after, start), SCANS[k]))
    return start, updates


def aggregate(rule, factors):
    start, updates = federation(factors)
    _, tensors, weights = rule.apply(rule.init(start, [update.client for update in updates]), updates)
    return tensors, weights


SIX = random_clients([16] * 6)
SHARES = [count / sum(SCANS) for count in SCANS]


def test_averaging_apart_is_biased():
    """The figure that docs/methods.md gives."""
    errors = []
    for seed in range(5):
        factors = random_clients([16] * 6, seed)
        a, b = (sum(part) / 6 for part in zip(*factors))
        exact = dense_mean(factors, [1 / 6] * 6)
        errors.append(relative(b @ a - exact, exact))
    # Of K independent factors the squared error is (K - 1) / K of the squared norm of the mean product.
    np.testing.assert_allclose(errors, np.sqrt(5 / 6), atol=0.03)
    tensors, _ = aggregate(FedIT(), SIX)
    exact = dense_mean(SIX, SHARES)
    assert relative(tensors[B] @ tensors[A] - exact, exact) > 0.8


@pytest.mark.parametrize("split", ["b", "sqrt"])
def test_the_product_rule_gives_the_dense_svds_truncation(split):
    tensors, weights = aggregate(FlexLoRA(split=split), SIX)
    exact = dense_mean(SIX, SHARES)
    best = best_of_rank(exact, 16)
    assert relative(tensors[B] @ tensors[A] - best, best) < 1e-5
    assert weights == pytest.approx(dict(zip("abcdef", SHARES)))


def test_no_adapter_of_that_rank_is_nearer():
    """Eckart and Young: the error is that of the singular values left out, and neither client nor random adapter beats it."""
    exact = dense_mean(SIX, SHARES)
    a, b = truncate(*compact_svd(*stack(SIX, SHARES)), 16)
    error = np.linalg.norm(b @ a - exact)
    assert error == pytest.approx(np.sqrt((np.linalg.svd(exact, compute_uv=False)[16:] ** 2).sum()), rel=1e-10)
    mean_a, mean_b = (sum(w * part for w, part in zip(SHARES, parts)) for parts in zip(*SIX))
    generator = np.random.default_rng(1)
    rivals = [*SIX, (mean_a, mean_b), (a, b + 1e-3 * generator.normal(size=b.shape))]
    # The best B for each rival A, and the best A for each rival B, by least squares.
    rivals += [(ra, np.linalg.lstsq(ra.T, exact.T)[0].T) for ra, _ in SIX]
    rivals += [(np.linalg.lstsq(rb, exact)[0], rb) for _, rb in SIX]
    assert all(np.linalg.norm(rb @ ra - exact) > error for ra, rb in rivals)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1)
)
def test_compact_svd_is_the_dense_one(ranks, out, width, seed):
    """Also where the stack has more columns than the matrix has rows."""
    generator = np.random.default_rng(seed)
    factors = [random_factors(generator, rank, out, width) for rank in ranks]
    weights = generator.uniform(0.1, 1, size=len(ranks))
    dense = dense_mean(factors, weights)
    u, values, vt = compact_svd(*stack(factors, weights))
    np.testing.assert_allclose((u * values) @ vt, dense, rtol=0, atol=1e-10)
    expected = np.linalg.svd(dense, compute_uv=False)
    np.testing.assert_allclose(values, expected[: len(values)], rtol=0, atol=1e-10)
    np.testing.assert_allclose(u.T @ u, np.eye(len(values)), atol=1e-10)
    np.testing.assert_allclose(vt @ vt.T, np.eye(len(values)), atol=1e-10)


def test_signs_are_no_choice_of_the_library():
    u, values, vt = compact_svd(*stack(SIX, SHARES))
    assert (np.take_along_axis(u, np.abs(u).argmax(axis=0)[None], axis=0) > 0).all()
    # The same product from other factors: rotated, and with every sign turned.
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(96, 96)))[0]
    a, b = stack(SIX, SHARES)
    for others in ((-a, -b), (rotation @ a, b @ rotation.T)):
        again = compact_svd(*others)
        for one, other in zip((u, values, vt), again):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)


def test_where_the_singular_values_go():
    tensors, _ = aggregate(FlexLoRA(split="b"), SIX)
    np.testing.assert_allclose(tensors[A] @ tensors[A].T, np.eye(16), atol=1e-6)
    tensors, _ = aggregate(FlexLoRA(split="sqrt"), SIX)
    np.testing.assert_allclose(tensors[A] @ tensors[A].T, tensors[B].T @ tensors[B], rtol=1e-5, atol=1e-4)


def test_all_else_is_averaged_as_by_fedavg():
    ours, theirs = aggregate(FlexLoRA(), SIX)[0], aggregate(FedAvg(), SIX)[0]
    assert ours["head.weight"].tobytes() == theirs["head.weight"].tobytes()
    assert list(ours) == list(theirs)
    assert all(ours[name].dtype == np.float32 and ours[name].shape == theirs[name].shape for name in ours)


def test_fedit_is_fedavg_by_its_own_name():
    ours, theirs = aggregate(FedIT(), SIX), aggregate(FedAvg(), SIX)
    assert ours[1] == theirs[1]
    assert {n: t.tobytes() for n, t in ours[0].items()} == {n: t.tobytes() for n, t in theirs[0].items()}


def test_one_client_keeps_its_product_and_fedit_its_factors():
    (a, b), *_ = SIX
    tensors, weights = aggregate(FlexLoRA(), SIX[:1])
    assert relative(tensors[B] @ tensors[A] - b @ a, b @ a) < 1e-6
    assert weights == {"a": 1.0}
    tensors, _ = aggregate(FedIT(), SIX[:1])
    np.testing.assert_array_equal(tensors[A], a.astype(np.float32))
    np.testing.assert_array_equal(tensors[B], b.astype(np.float32))


@pytest.mark.parametrize("split", ["b", "sqrt"])
def test_before_anything_is_learned_the_adapters_can_still_be_trained(split):
    """B is 0 at the start: the product is 0, and with A at 0, too, no gradient would ever come."""
    start, _ = federation(SIX)
    rule = FlexLoRA(split=split)
    updates = [Update(c, {name: np.zeros(t.shape) for name, t in start.items()}, 1) for c in "ab"]
    _, tensors, _ = rule.apply(rule.init(start, "ab"), updates)
    np.testing.assert_array_equal(tensors[A], start[A])
    assert not tensors[B].any()


@pytest.mark.parametrize("split", ["b", "sqrt"])
def test_a_product_of_less_rank_leaves_idle_rows_as_the_clients_have_them(split):
    generator = np.random.default_rng(3)
    a = generator.normal(size=(4, WIDTH))
    b = np.zeros((OUT, 4))
    b[:, :2] = generator.normal(size=(OUT, 2))
    new_a, new_b = truncate(*compact_svd(a, b), 4, split=split, spare=a)
    np.testing.assert_allclose(new_b @ new_a, b @ a, atol=1e-10)
    np.testing.assert_array_equal(new_a[2:], a[2:])
    assert not new_b[:, 2:].any()
    assert np.linalg.norm(new_a[:2], axis=1).min() > 0.9


def test_where_all_have_the_same_a_averaging_b_apart_is_exact():
    """What FFA-LoRA (A frozen) and RoLoRA (one factor at a time) rest on."""
    same = [(SIX[0][0], b) for _, b in SIX]
    exact = dense_mean(same, SHARES)
    for rule in (FedIT(), FlexLoRA()):
        tensors, _ = aggregate(rule, same)
        assert relative(tensors[B] @ tensors[A] - exact, exact) < 1e-6


def test_clients_of_different_rank_and_scale():
    """Each is served the best of its own rank, in its own scale alpha / r."""
    ranks, alpha = [4, 8, 2], 16
    factors, weights = random_clients(ranks, seed=4), [0.5, 0.2, 0.3]
    scaled = [weight * alpha / rank for weight, rank in zip(weights, ranks)]
    mean = dense_mean(factors, scaled)
    singular = compact_svd(*stack(factors, scaled))
    for rank in ranks:
        for split in ("b", "sqrt"):
            a, b = truncate(*singular, rank, scale=alpha / rank, split=split)
            assert a.shape == (rank, WIDTH)
            assert b.shape == (OUT, rank)
            best = best_of_rank(mean, rank)
            assert relative(alpha / rank * (b @ a) - best, best) < 1e-10
    # More rank than all clients have together holds the mean itself.
    a, b = truncate(*singular, 20)
    assert relative(b @ a - mean, mean) < 1e-12
    assert not b[:, 14:].any()


def test_the_stack_is_the_mean_product():
    factors, weights = random_clients([4, 8, 2], seed=5), [0.5, 0.2, 0.3]
    a, b = stack(factors, weights)
    assert a.shape == (14, WIDTH)
    assert b.shape == (OUT, 14)
    exact = dense_mean(factors, weights)
    assert relative(b @ a - exact, exact) < 1e-14


@pytest.mark.parametrize("clients", [1, 2, 6])
def test_with_the_residual_in_the_base_averaging_apart_is_exact(clients):
    """FedEx-LoRA: the model with the corrected base is the mean of the clients' models."""
    factors, weights = SIX[:clients], np.array(SCANS[:clients]) / sum(SCANS[:clients])
    base, scale = np.random.default_rng(6).normal(size=(OUT, WIDTH)), 2.0
    mean_model = sum(w * (base + scale * b @ a) for w, (a, b) in zip(weights, factors))
    a, b = (sum(w * part for w, part in zip(weights, parts)) for parts in zip(*factors))
    missing_a, missing_b = residual(factors, weights)
    assert missing_a.shape == (16 * (clients - 1), WIDTH)
    assert missing_b.shape == (OUT, 16 * (clients - 1))
    corrected = base + scale * missing_b @ missing_a + scale * b @ a
    assert relative(corrected - mean_model, mean_model) < 1e-14


def test_names_are_those_of_peft_and_the_product_is_what_its_layer_adds():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 10), nn.Conv3d(2, 3, 3))
        inject_adapter_in_model(
            LoraConfig(r=2, lora_alpha=6, target_modules=["0", "1"], init_lora_weights=False), model
        )
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    pairs = factor_pairs(tensors)
    assert list(pairs) == ["0.lora_A.default.weight", "1.lora_A.default.weight"]
    assert all(b in tensors for b in pairs.values())
    a, b = (tensors[name] for name in next(iter(pairs.items())))
    layer = model[0]
    assert isinstance(layer, LoraLinear)
    np.testing.assert_allclose(3 * b @ a, layer.get_delta_weight("default").detach(), rtol=1e-5, atol=1e-7)

    # One client: what the adapters add stays, a convolution's included.
    rule = FlexLoRA()
    added = [model[i].get_delta_weight("default").detach().clone() for i in (0, 1)]
    start = {name: np.zeros_like(tensors[name]) for pair in pairs.items() for name in pair}
    _, after, _ = rule.apply(rule.init(start, "a"), [Update("a", Difference(tensors, start), 1)])
    model.load_state_dict({name: torch.tensor(array) for name, array in after.items()}, strict=False)
    for i, before in zip((0, 1), added):
        np.testing.assert_allclose(model[i].get_delta_weight("default").detach(), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", [FedIT(), FlexLoRA()])
@pytest.mark.parametrize("names", [["head.weight"], ["head.weight", B], [A]])
def test_a_model_without_both_factors_is_refused(rule, names):
    with pytest.raises(StudyError, match="no LoRA factors A and B that both travel"):
        rule.init({name: np.zeros((2, 2)) for name in names}, "ab")


def test_options_are_checked():
    with pytest.raises(StudyError, match="flexlora: split 'a' is unknown; known: b, sqrt"):
        FlexLoRA(split="a")
