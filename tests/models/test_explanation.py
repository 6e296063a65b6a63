"""Explanation maps against what is known by hand: linear and quadratic evidence, a dense roll-out, a cube that was trained for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import nn

from fedbrain.devices import FittingBatch
from fedbrain.errors import StudyError
from fedbrain.models import explanation
from fedbrain.models.classifier import Classifier
from fedbrain.models.explanation import (
    FromVolume,
    agreement,
    attention_seen,
    brain_of,
    evidence_of,
    integrated_gradients,
    occlusion,
    randomised,
    reference_of,
    rollout,
    rollout_map,
    stages,
)
from fedbrain.models.heads import LinearHead
from fedbrain.models.lora import LoRA
from fedbrain.models.sam_med3d import Block
from tiny_encoder import GRID, HEADS, WIDTH, TinyEncoder, tiny_model, volume

SMALL = (8, 8, 8)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def weights():
    return torch.randn(SMALL, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def scan():
    values = torch.zeros(SMALL)
    values[1:7, 1:7, 2:8] = torch.rand(6, 6, 6, generator=torch.Generator().manual_seed(2)) + 0.5
    return values


def linear(weights):
    return lambda x: (x[:, 0] * weights).sum((1, 2, 3))


def test_integrated_gradients_of_linear_evidence_are_weight_times_difference(weights, scan):
    reference = reference_of(scan, "mean")
    found = integrated_gradients(linear(weights), scan, reference, steps=1)
    torch.testing.assert_close(found, weights * (scan - reference))
    assert (found[scan == 0] == 0).all()


def test_integrated_gradients_of_a_quartic_are_exact_with_two_points_and_not_with_one(weights, scan):
    def evidence(x):
        return (weights * x[:, 0] ** 4).sum((1, 2, 3))

    reference = reference_of(scan, "mean")
    # sum over voxels of w (x - r) * mean of 4 s^3 on the line = w (x^4 - r^4), voxel by voxel
    expected = weights * (scan**4 - reference**4)
    torch.testing.assert_close(
        integrated_gradients(evidence, scan, reference, steps=2, fitting=FittingBatch(2)), expected
    )
    assert (integrated_gradients(evidence, scan, reference, steps=1) - expected).abs().max() > 1e-3


def test_integrated_gradients_do_not_depend_on_how_many_points_go_together():
    model, scan = tiny_model(), volume()
    reference = reference_of(scan, "mean")
    one, three = (integrated_gradients(model, scan, reference, steps=4, fitting=FittingBatch(n)) for n in (1, 3))
    torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("baseline", explanation.BASELINES)
def test_integrated_gradients_are_complete_on_a_transformer(baseline):
    model, scan = tiny_model("volume"), volume()
    reference = reference_of(scan, baseline)
    found = integrated_gradients(model, scan, reference, steps=12, fitting=FittingBatch(4))
    whole, rest = evidence_of(model, torch.stack([scan, reference]))
    assert abs(whole - rest) > 1e-3
    assert float(found.double().sum()) == pytest.approx(float(whole - rest), rel=1e-2)
    assert (found[~brain_of(scan)] == 0).all()


def test_the_reference_keeps_the_background(scan):
    mean, background = reference_of(scan, "mean"), reference_of(scan, "background")
    assert (mean[scan == 0] == 0).all()
    assert mean[scan != 0].unique().item() == pytest.approx(float(scan[scan != 0].mean()))
    assert (background == 0).all()
    shifted = reference_of(scan - 3, "mean")  # as by a z-score
    torch.testing.assert_close(shifted, mean - 3)
    with pytest.raises(ValueError, match="empty"):
        reference_of(torch.ones(SMALL), "mean")


@pytest.mark.parametrize("at_once", [1, 5])
def test_occlusion_of_linear_evidence_is_the_sum_of_what_is_hidden(weights, scan, at_once):
    reference = reference_of(scan, "mean")
    found = occlusion(linear(weights), scan, reference, block=4, stride=4, fitting=FittingBatch(at_once))
    lost = (weights * (scan - reference)).view(2, 4, 2, 4, 2, 4).sum((1, 3, 5))
    expected = lost.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_overlapping_blocks_are_averaged_and_reach_the_edge(weights, scan):
    reference = reference_of(scan, "mean")
    found = occlusion(linear(weights), scan, reference, block=4, stride=3)
    starts, product = (0, 3, 4), (weights * (scan - reference)).numpy()
    values = [
        product[i : i + 4, j : j + 4, k : k + 4].sum()
        for i in starts
        for j in starts
        for k in starts
        if i <= 3 < i + 4 and j <= 5 < j + 4 and k <= 7 < k + 4
    ]
    assert len(values) == 2 * 2 * 1
    assert float(found[3, 5, 7]) == pytest.approx(np.mean(values), rel=1e-4)


def test_a_stride_with_gaps_is_refused(weights, scan):
    with pytest.raises(ValueError, match="leaves gaps"):
        occlusion(linear(weights), scan, scan, block=2, stride=3)


def test_blocks_without_brain_are_not_computed(weights, scan):
    calls = []

    def evidence(x):
        calls.append(len(x))
        return linear(weights)(x)

    empty = scan.clone()
    empty[:, :, 4:] = 0
    empty[:4, :4] = 0
    reference = reference_of(empty, "mean")
    found = occlusion(evidence, empty, reference, block=4, stride=4)
    assert sum(calls) == 1 + 3  # the scan itself, and the blocks that hold some brain
    assert (found[:, :, 4:] == 0).all()


def test_rollout_by_hand():
    """Two blocks of two tokens and a pad: the second token takes half of its value from the pad in the first block."""
    first = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.5]])
    second = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    # joined: [[1, 0], [.25, .5]] and [[.5, .5], [0, 1]]; product [[.625, .25], [.25, .5]]; mean of its rows
    torch.testing.assert_close(rollout([first, second]), torch.tensor([0.4375, 0.375], dtype=torch.float64))


def dense_attention(attention, x):
    """The windowed attention of SAM-Med3D written out over all 14^3 keys, pads included, for the 8^3 queries: mean over heads."""
    span, heads, width = 14, 12, 64
    grid = torch.zeros(span, span, span, 768)
    grid[:8, :8, :8] = x.view(8, 8, 8, 768)
    q, k, _ = attention.qkv(grid).view(span, span, span, 3, heads, width).permute(3, 4, 0, 1, 2, 5)
    tables = [getattr(attention, f"rel_pos_{axis}") for axis in "dhw"]
    gathered = [
        torch.stack([torch.stack([table[i - j + span - 1] for j in range(span)]) for i in range(span)])
        for table in tables
    ]
    total = torch.zeros(512, span**3)
    for head in range(heads):
        query, key = q[head], k[head]
        logits = torch.einsum("dhwc,xyzc->dhwxyz", query[:8, :8, :8], key) / width**0.5
        a = torch.einsum("dhwc,dzc->dhwz", query[:8, :8, :8], gathered[0][:8])
        b = torch.einsum("dhjc,hzc->dhjz", query[:8, :8], gathered[1][:8])
        c = torch.einsum("dhjc,jzc->dhjz", query[:8, :8], gathered[2])
        logits = logits + a[:, :, :, None, None] + b[:, :, None, :, None] + c[:, :, None, None]
        total += logits.reshape(512, -1).softmax(-1)
    weights = (total / heads).view(512, span, span, span)
    inside = weights[:, :8, :8, :8].reshape(512, 512)
    return torch.cat([inside, 1 - inside.sum(1, keepdim=True)], dim=1)


def test_attention_of_a_padded_window_is_that_written_out_over_all_its_keys():
    torch.manual_seed(3)
    block = Block(14).eval()
    with torch.no_grad():
        for parameter in block.attn.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.03)
        tokens = torch.randn(1, 512, 768)
        with attention_seen(block) as maps:
            block(tokens)
        (found,) = maps
        expected = dense_attention(block.attn, block.norm1(tokens)[0])
    assert found.shape == (1, 512, 513)
    assert found[0, :, 512].mean() > 0.05  # the pads do take part
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-6)


def test_rollout_of_an_encoder_with_adapters_is_the_one_written_out():
    torch.manual_seed(4)
    encoder, scan = TinyEncoder().eval(), volume()
    LoRA(blocks=[1, 2], rank=2).apply(encoder)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape))
        model = FromVolume(Classifier("volume", encoder, LinearHead(channels=WIDTH)))
        found, pads = rollout_map(model, scan)
        product, t = torch.eye(GRID**3), encoder.embed(scan[None, None])
        for block in encoder.blocks:
            q, k, _ = block.attn.qkv(block.norm(t)).view(GRID**3, 3, HEADS, -1).permute(1, 2, 0, 3)
            dense = torch.stack([(q[n] @ k[n].T / q.shape[-1] ** 0.5).softmax(1) for n in range(HEADS)]).mean(0)
            product = (dense + torch.eye(GRID**3)) / 2 @ product
            t = block(t)
    expected = product.mean(0).view(GRID, GRID, GRID) * GRID**3
    torch.testing.assert_close(found[16::32, 16::32, 16::32], expected, rtol=1e-4, atol=1e-5)
    assert found.shape == scan.shape
    assert (found[:32, :32, :32] == found[0, 0, 0]).all()
    assert pads == pytest.approx(0, abs=1e-6)
    assert found.std() > 1e-3


def test_attention_of_brainiac_is_seen():
    from monai.networks.blocks import TransformerBlock

    torch.manual_seed(5)
    block, tokens = TransformerBlock(16, 32, 2).eval(), torch.randn(1, 6, 16)
    with attention_seen(block) as maps, torch.no_grad():
        block(tokens)
        q, k, _ = block.attn.qkv(block.norm1(tokens)).view(6, 3, 2, 8).permute(1, 2, 0, 3)
    expected = (q @ k.mT / 8**0.5).softmax(-1).mean(0)
    assert len(maps) == 1
    torch.testing.assert_close(maps[0][0], expected)
    assert not block.attn.save_attn


def test_rollout_without_attention_to_see_is_refused():
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 2)

        def forward(self, x):
            return self.layer(x.mean((2, 3, 4)))

    model = FromVolume(Classifier("volume", None, Convolution()))
    with pytest.raises(StudyError, match="0 attentions were seen in 0 blocks"):
        rollout_map(model, volume())


@pytest.mark.parametrize("cut", ["volume", "block1"])
def test_every_cut_gives_the_same_evidence_and_the_same_map(cut):
    scan = volume()
    whole, part = tiny_model("output"), tiny_model(cut)
    assert part.depth == whole.depth == 3
    first, second = (evidence_of(model, scan[None]) for model in (whole, part))
    torch.testing.assert_close(first, second, rtol=0, atol=2e-3)  # the output is kept in float16
    torch.testing.assert_close(rollout_map(whole, scan)[0], rollout_map(part, scan)[0])


def test_the_change_by_a_harmonization_is_that_of_the_rows_that_training_reads():
    from fedbrain.federated.data import Rows

    scan, plain = volume(), tiny_model("output")
    gain, shift = torch.rand(WIDTH) + 0.5, torch.randn(WIDTH)
    with torch.inference_mode():
        kept = plain.prefix(scan[None, None])[0].half()
        rows = Rows([kept]).with_means(gain.numpy(), shift.numpy()[None])
        logits = plain.classifier(rows[torch.tensor([0])].float())
    changed = FromVolume(plain.classifier, plain.prefix, change=(gain, shift))
    found = evidence_of(changed, scan[None])
    torch.testing.assert_close(found, (logits[:, 1] - logits[:, 0]).double(), rtol=1e-5, atol=1e-6)
    assert (found - evidence_of(plain, scan[None])).abs() > 1e-3


@pytest.mark.parametrize("cut", ["output", "block1", "volume"])
def test_weights_are_scrambled_from_the_output_to_the_input(cut):
    model, before = tiny_model(cut), tiny_model(cut).state_dict()
    seen = []
    for stage, scrambled in randomised(model, seed=1):
        state = scrambled.state_dict()
        for name, tensor in state.items():
            torch.testing.assert_close(tensor.flatten().sort().values, before[name].flatten().sort().values)
        seen.append((stage, {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}))
    assert [stage for stage, _ in seen] == [stage for stage, _ in stages(model)]
    assert [stage for stage, _ in seen] == ["head", "blocks 2 to 3", "blocks 1 to 1", "patch embedding"]
    assert all(name.startswith("classifier.head") for name in seen[0][1])
    for (_, fewer), (_, more) in zip(seen, seen[1:]):
        assert fewer < more
    used = {name for name in before if ".patch." not in name or cut != "block1"} - {
        name for name in before if cut == "block1" and name.startswith("prefix.neck")
    }
    alike = {name for name, tensor in before.items() if tensor.flatten().unique().numel() == 1}  # norms before training
    assert used - alike - seen[-1][1] == set()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_scrambling_is_that_of_its_seed():
    first, again, other = (list(randomised(tiny_model(), seed))[-1:] for seed in (1, 1, 2))
    states = [model.state_dict() for ((_, model),) in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_agreement_of_maps():
    rng = np.random.default_rng(6)
    first, second = rng.normal(size=(2, 24, 24, 24))
    brain = np.zeros((24, 24, 24), bool)
    brain[4:20, 4:20, 4:20] = True
    assert agreement(first, first, brain) == pytest.approx({"spearman": 1, "spearman_absolute": 1, "ssim": 1})
    flipped = agreement(first, -first, brain)
    assert flipped["spearman"] == pytest.approx(-1)
    assert flipped["spearman_absolute"] == pytest.approx(1)
    ranks = [rankdata(values[brain]) for values in (first, second)]
    found = agreement(first, second, brain)
    assert found["spearman"] == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert found["ssim"] < 0.5
    beyond = np.where(brain, first, 100 * second)  # what lies outside the brain does not count
    assert agreement(first, beyond, brain) == pytest.approx({"spearman": 1, "spearman_absolute": 1, "ssim": 1})
    assert np.isnan(agreement(first, np.ones_like(first), brain)["spearman"])


def test_structural_similarity_is_that_of_monai():
    from monai.metrics.regression import compute_ssim_and_cs

    first, second = np.random.default_rng(8).random((2, 20, 22, 24))
    second = 0.7 * first + 0.3 * second
    brain = np.ones(first.shape, bool)
    padded = []
    for values in (first, second):
        scaled = np.minimum(values / np.percentile(values, 99), 1)
        padded.append(torch.as_tensor(np.pad(scaled, 5))[None, None])
    expected, _ = compute_ssim_and_cs(*padded, spatial_dims=3, kernel_size=[11] * 3, kernel_sigma=[1.5] * 3)
    assert 0.3 < expected.mean() < 0.95
    assert agreement(first, second, brain)["ssim"] == pytest.approx(float(expected.mean()), abs=1e-5)


def test_a_model_trained_to_see_a_bright_cube_shows_the_cube():
    """Cases have a bright cube in one patch; all three maps of the trained model must tell that patch from the 63 others."""
    torch.manual_seed(7)
    encoder, head = TinyEncoder(2), LinearHead(channels=WIDTH)
    place = (slice(64, 96), slice(32, 64), slice(64, 96))
    cube = (slice(68, 92), slice(36, 60), slice(68, 92))
    scans = torch.stack([volume(seed) for seed in range(8)])
    labels = torch.tensor([0, 1] * 4)
    for scan, label in zip(scans, labels):
        scan[cube] += 2.0 * label
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=0.01)
    model = Classifier("volume", encoder, head)
    for _ in range(40):
        loss = F.cross_entropy(model(scans[:, None]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    explained = FromVolume(model)
    unseen = volume(100)
    unseen[cube] += 2.0
    reference = reference_of(unseen, "mean")
    gradients = integrated_gradients(explained, unseen, reference, steps=8, fitting=FittingBatch(4))
    hidden = occlusion(explained, unseen, reference, block=32, stride=32, fitting=FittingBatch(8))
    for found in (gradients, hidden):
        by_patch = found.view(4, 32, 4, 32, 4, 32).sum((1, 3, 5))
        assert by_patch.argmax() == by_patch.shape[0] ** 2 * 2 + 4 * 1 + 2
        assert found[place].sum() > 0.5 * by_patch.clamp(min=0).sum()
    scrambled = dict(randomised(explained, seed=3))["head"]
    other = integrated_gradients(scrambled, unseen, reference, steps=8, fitting=FittingBatch(4))
    brain = brain_of(unseen).numpy()
    assert agreement(gradients.numpy(), other.numpy(), brain)["spearman"] < 0.5
