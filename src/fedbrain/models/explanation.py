"""What a classifier's score of one scan rests on: maps over the scan's own voxels, and a check that they mean something.

All maps explain one number, the *evidence*: the logit of a case minus that of a control. They compare the scan with a *reference*,
in which the brain is filled with one value (``reference_of``).

    integrated gradients   voxel by voxel; sums to evidence(scan) - evidence(reference)    Sundararajan et al., ICML 2017
    occlusion              what the evidence loses where a block of the brain is filled    Zeiler and Fergus, ECCV 2014
    attention roll-out     where information flows from, whatever it says                  Abnar and Zuidema, ACL 2020

Roll-out reads the attention alone. It knows neither head nor class, so that it shows where the encoder looks and never what speaks
for a case; values, the layers between the attentions and the encoder's convolutions have no part in it.

Weight randomisation (Adebayo et al., NeurIPS 2018): where a map stays as it was though the weights are scrambled, it says
something about the scan and nothing about what was learned.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedbrain.devices import FittingBatch, autocast
from fedbrain.errors import StudyError
from fedbrain.models.classifier import Classifier
from fedbrain.models.encoder import Encoder
from fedbrain.models.tuning import OUTPUT, start_of

Evidence = Callable[[Tensor], Tensor]  # volumes (B, 1, X, Y, Z) -> (B,)

BASELINES = ("mean", "background")
SSIM_WINDOW = 11  # voxels a side of the Gaussian window, deviation 1.5 (Wang et al. 2004)


class FromVolume(nn.Module):
    """A cell's classifier with the frozen part of the encoder before it: volumes (B, 1, 128, 128, 128) -> evidence (B,).

    Args:
        classifier: what was trained, from its cut on.
        prefix: the encoder that made what is kept at the cut; None where that is the volume.
        precisions: of the prefix and of the classifier, as in the study.
        change: gain (C,) and shift (C,) of the scan's channel means by a harmonization, if the cell has one.
    """

    def __init__(
        self,
        classifier: Classifier,
        prefix: Encoder | None = None,
        *,
        precisions: tuple[str, str] = ("float32", "float32"),
        change: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.classifier, self.prefix = classifier, prefix
        self.precisions, self.change = precisions, change
        start = start_of(classifier.cut)
        if prefix is not None and start is not None:
            prefix.blocks = prefix.blocks[:start]
        self.requires_grad_(False).eval()

    @property
    def depth(self) -> int:
        """Blocks of the encoder, those before the cut and those after it."""
        encoder = self.classifier.encoder
        return (len(self.prefix.blocks) if self.prefix else 0) + (encoder.depth - encoder.first if encoder else 0)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if self.prefix is not None:
            start = start_of(self.classifier.cut)
            with autocast(device, self.precisions[0]):
                x = self.prefix(x) if start is None else self.prefix.tokens(x, start)
            x = x.float()
        if self.classifier.cut == OUTPUT:
            x = _as_kept(x)
            if self.change is not None:
                gain, shift = (values.to(x.device)[:, None] for values in self.change)
                x = _as_kept(x + ((gain - 1) * x.flatten(2).mean(2, keepdim=True) + shift).unflatten(2, (1, 1, 1)))
        with autocast(device, self.precisions[1]):
            logits = self.classifier(x)
        return logits[:, 1].float() - logits[:, 0].float()


def _as_kept(x: Tensor) -> Tensor:
    """Rounded to float16, as embeddings are kept; gradients pass as if it were not."""
    return x + (x.half().float() - x).detach()


def brain_of(volume: Tensor) -> Tensor:
    """Where a volume (..., X, Y, Z) is not background, which has one value throughout; that of the first voxel."""
    return volume != volume[..., :1, :1, :1]


def reference_of(volume: Tensor, baseline: str) -> Tensor:
    """The volume (X, Y, Z) with one value in all of its brain: "mean" of the brain, or that of the "background".

    A voxel that has the reference's value already gets nothing from integrated gradients. "background" is a field of view without
    a brain, and blind for dark fluid; "mean" keeps the brain's outline, and is blind for what is as bright as the mean.
    """
    brain = brain_of(volume)
    if not brain.any():
        raise ValueError("the volume is empty: all of its voxels have one value")
    value = volume[brain].double().mean().to(volume.dtype) if baseline == "mean" else volume[0, 0, 0]
    return torch.where(brain, value, volume)


@torch.no_grad()
def evidence_of(evidence: Evidence, volumes: Tensor) -> Tensor:
    """Evidence of volumes (N, X, Y, Z), one after the other: (N,) float64 on the CPU."""
    return torch.cat([evidence(volume[None, None]) for volume in volumes]).double().cpu()


def integrated_gradients(
    evidence: Evidence, volume: Tensor, reference: Tensor, *, steps: int = 16, fitting: FittingBatch | None = None
) -> Tensor:
    """(x - r) times the mean gradient of the evidence on the straight line from r to x: (X, Y, Z) float32, units of logit.

    The mean is by Gauss-Legendre's rule with ``steps`` points, exact where the gradient along the line is a polynomial of degree
    2 steps - 1. As many points go through the network together as ``fitting`` allows; by default one.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    places = torch.as_tensor((nodes + 1) / 2, dtype=volume.dtype, device=volume.device)
    weights = torch.as_tensor(weights / 2, dtype=volume.dtype, device=volume.device)

    def mean_gradient(parts: Sequence[Tensor]) -> Tensor:
        mean = torch.zeros_like(volume)
        for some in parts:
            points = torch.lerp(reference, volume, places[some, None, None, None])[:, None].requires_grad_()
            (gradient,) = torch.autograd.grad(evidence(points).sum(), points)
            mean += torch.einsum("b,bxyz->xyz", weights[some], gradient[:, 0])
        return mean

    fitting = fitting or FittingBatch(1)
    return ((volume - reference) * fitting.run(mean_gradient, torch.arange(steps, device=volume.device))).float().cpu()


@torch.no_grad()
def occlusion(
    evidence: Evidence,
    volume: Tensor,
    reference: Tensor,
    *,
    block: int,
    stride: int,
    fitting: FittingBatch | None = None,
) -> Tensor:
    """What the evidence loses where a block takes the reference's values: (X, Y, Z) float32, units of logit.

    Blocks have ``block`` voxels a side and lie ``stride`` apart, the last ones flush with the edge. A voxel's value is the mean
    over the blocks that it lies in. Where volume and reference agree nothing is computed: the loss is 0.

    Raises ValueError for a stride that leaves gaps.
    """
    if not 1 <= stride <= block:
        raise ValueError(f"stride {stride} leaves gaps between blocks of {block} voxels")
    starts = [[*range(0, size - block, stride), max(size - block, 0)] for size in volume.shape]
    places = [(i, j, k) for i in starts[0] for j in starts[1] for k in starts[2]]
    blocks = [tuple(slice(start, start + block) for start in place) for place in places]
    differs = volume != reference
    changing = [place for place in blocks if differs[place].any()]
    (whole,) = evidence_of(evidence, volume[None])
    total, count = torch.zeros(2, *volume.shape, dtype=torch.float64)
    for place in blocks:
        count[place] += 1

    def without(parts: Sequence[Tensor]) -> Tensor:
        found = []
        for part in parts:
            hidden = volume.repeat(len(part), 1, 1, 1)  # (b, X, Y, Z)
            for row, number in zip(hidden, part.tolist()):
                row[changing[number]] = reference[changing[number]]
            found.append(evidence(hidden[:, None]).double().cpu())
        return torch.cat(found)

    fitting = fitting or FittingBatch(1)
    rest = fitting.run(without, torch.arange(len(changing))) if changing else []
    for place, value in zip(changing, rest):
        total[place] += whole - value
    return (total / count).float()


class _AttentionSeen(TorchFunctionMode):
    """Notes the weights of every attention that torch's function computes, mean over the heads."""

    def __init__(self, maps: list[Tensor]):
        super().__init__()
        self._maps = maps

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            self._maps.append(_attention_weights(*args, **kwargs).mean(1))
        return function(*args, **kwargs)


def _attention_weights(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **options):
    """(B, heads, queries, keys)"""
    logits = query.float() @ key.float().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (logits if attn_mask is None else logits + attn_mask.float()).softmax(-1)


@contextmanager
def attention_seen(network: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, every attention of ``network`` appends its weights (B, queries, keys), mean over the heads, to the list.

    Seen are torch's ``scaled_dot_product_attention``, with whatever adapters change its input, and MONAI's self-attention block.
    """
    maps: list[Tensor] = []
    own = [module for module in network.modules() if hasattr(module, "save_attn")]  # MONAI's
    before = [module.save_attn for module in own]
    hooks = [
        module.register_forward_hook(lambda module, *_: maps.append(module.att_mat.float().mean(1))) for module in own
    ]
    try:
        for module in own:
            module.save_attn = True
        with _AttentionSeen(maps):
            yield maps
    finally:
        for module, hook, value in zip(own, hooks, before):
            hook.remove()
            module.save_attn, module.att_mat = value, torch.Tensor()


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    """How much of the output's tokens, on average, comes from each token that entered the first block: (N,), sum 1 or less.

    Each block's attention (N, K) is averaged with the identity, which stands for the way around the attention, and all are
    multiplied. Keys beyond the N tokens hold nothing of the scan (the pads of SAM-Med3D's windows, one column for all of
    them); what flows from there is what is missing to 1.
    """
    tokens = len(attentions[0])
    share = torch.full((tokens,), 1 / tokens, dtype=torch.float64)  # of the output, from the last block to the first
    for attention in reversed(attentions):
        share = (share + share @ attention[:, :tokens].double().cpu()) / 2
    return share


@torch.no_grad()
def rollout_map(model: FromVolume, volume: Tensor) -> tuple[Tensor, float]:
    """Roll-out of a volume (X, Y, Z) as a map of its shape, and the share that flows from pads.

    1 is what each token would have if all had the same. A token's value stands at all voxels of its patch.
    Raises StudyError where the attention of some block is not seen.
    """
    with attention_seen(model) as maps:
        model(volume[None, None])
    if len(maps) != model.depth or not maps:
        raise StudyError(
            f"attention roll-out: {len(maps)} attentions were seen in {model.depth} blocks of the encoder; leave rollout out of "
            "evaluation.explanation.methods"
        )
    share = rollout([attention[0] for attention in maps])  # (N,)
    side = round(len(share) ** (1 / 3))
    grid = (share * len(share) / share.sum()).float().view(1, 1, side, side, side)
    return F.interpolate(grid, size=volume.shape, mode="nearest-exact")[0, 0], 1 - float(share.sum())


def stages(model: FromVolume) -> list[tuple[str, list[nn.Module | nn.Parameter]]]:
    """The parts of a model from the output to the input, as they are randomised one after the other."""
    result = [("head", [model.classifier.head])]
    encoders = [encoder for encoder in (model.classifier.encoder, model.prefix) if encoder is not None]
    if not encoders:
        return result
    blocks = [block for encoder in reversed(encoders) for block in encoder.blocks[encoder.first :]]
    half, last, first = len(blocks) // 2, encoders[0], encoders[-1]
    tail = [part for name, part in _parts(last) if name not in last.prefix]
    entry = [part for name, part in _parts(first) if name in first.prefix]
    return [
        *result,
        (f"blocks {half + 1} to {len(blocks)}", [*tail, *blocks[half:]]),
        (f"blocks 1 to {half}", blocks[:half]),
        ("patch embedding", entry),
    ]


def _parts(encoder: Encoder) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Modules and parameters of an encoder itself, but for its blocks."""
    yield from ((name, module) for name, module in encoder.named_children() if name != "blocks")
    yield from encoder.named_parameters(recurse=False)


def randomised(model: FromVolume, seed: int) -> Iterator[tuple[str, FromVolume]]:
    """The model with more and more of its weights scrambled, from the output to the input: name of the last stage, the model.

    The numbers of each tensor are permuted, so that every tensor keeps its distribution and activations their size (ours; Adebayo
    et al. draw new ones). Yields one copy that changes from stage to stage; ``model`` stays as it is.
    """
    model = copy.deepcopy(model)
    for stage, parts in stages(model):
        for number, part in enumerate(parts):
            tensors = [part] if isinstance(part, Tensor) else [*part.parameters(), *part.buffers()]
            for place, tensor in enumerate(tensors):
                if tensor.numel() > 1 and tensor.is_floating_point():
                    text = f"{seed} {stage} {number} {place}"
                    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
                    order = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(drawn))
                    flat = tensor.detach().flatten()[order.to(tensor.device)]
                    tensor.data.copy_(flat.view(tensor.shape))
        yield stage, model


def agreement(first: np.ndarray, second: np.ndarray, brain: np.ndarray) -> dict[str, float]:
    """How alike two maps (X, Y, Z) are within ``brain``: rank correlation with and without signs, and SSIM without.

    ``spearman`` and ``spearman_absolute`` are NaN where a map is constant. ``ssim`` is the mean over the brain's voxels of the
    structural similarity of |maps|, each scaled to 0...1 by its 99th percentile in the brain and clipped there.
    """
    pairs = {"spearman": (first, second), "spearman_absolute": (np.abs(first), np.abs(second))}
    return {name: _rank_correlation(*(values[brain] for values in pair)) for name, pair in pairs.items()} | {
        "ssim": _similarity(np.abs(first), np.abs(second), brain)
    }


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)


def _similarity(first: np.ndarray, second: np.ndarray, brain: np.ndarray) -> float:
    """Mean structural similarity with a Gaussian window (Wang et al. 2004); a product of three filters, unlike MONAI's."""
    box = tuple(slice(found.min(), found.max() + 1) for found in np.nonzero(brain))
    inside, maps = brain[box], []
    for values in (first, second):
        top = max(float(np.percentile(values[brain], 99)), float(np.finfo(np.float32).tiny))
        maps.append(np.where(inside, np.minimum(values[box] / top, 1), 0).astype(np.float64))

    def local_mean(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, radius=SSIM_WINDOW // 2, mode="constant")

    x, y = maps
    mean_x, mean_y = local_mean(x), local_mean(y)
    variances = local_mean(x * x) - mean_x**2 + local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2  # for a range of 1
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * (2 * covariance + c2) / (variances + c2))[inside].mean())
