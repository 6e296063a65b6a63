"""The encoder of BrainIAC, a foundation model of brain MRI (ViT-B, self-supervised by SimCLR), on MONAI's ``ViT``.

Reference: Tak et al., Nature Neuroscience 2026, doi 10.1038/s41593-026-02202-6; network, checkpoint and input transform as
in the authors' repository (github.com/AIM-KannLab/BrainIAC, src/model.py and src/dataset.py). Parameter names are those
of the published file without its ``backbone.`` prefix, which are those of MONAI's ``ViT``.

The published code calls its feature a class token, but builds the network without one: the feature is the token of the
first patch, a corner of the image, after the final norm. Here the whole map of tokens is the output; it begins with that
token.
"""

import argparse
from pathlib import Path

import torch.nn.functional as F
from monai.networks.nets import ViT
from torch import Tensor, nn

from fedbrain.models.cards import CARDS
from fedbrain.models.encoder import Encoder, load_encoder
from fedbrain.models.weights import Layout

IMAGE, PATCH, GRID = 96, 16, 6  # voxels, voxels, tokens; each along one axis
WIDTH, MLP, DEPTH, HEADS = 768, 3072, 12, 12

# A checkpoint of PyTorch Lightning. Older versions of Lightning keep the hyper parameters in a dict of their own class,
# which is read as a plain dict under its name, without Lightning.
CHECKPOINT = Layout(
    card=CARDS["brainiac"],
    container="state_dict",
    prefix="backbone.",
    flat=True,
    unused=("cross_attn", "norm_cross_attn"),  # some versions of MONAI make them in every block and use them in none
    classes=(
        argparse.Namespace,
        (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
        (dict, "lightning.pytorch.utilities.parsing.AttributeDict"),
    ),
    hint="the authors' files for single tasks, such as brain age, and their first release, a ResNet, do not fit",
)


def published_input(x: Tensor) -> Tensor:
    """The authors' input transform, from the study's volumes: (B, 1, 128, 128, 128) -> (B, 1, 96, 96, 96).

    They resize a brain on a background of zero to 96^3 (trilinear) and normalize it by mean and deviation (n) of the
    voxels that are not zero. The study's z-score has moved the background to another value, the same in all of it; it is
    read off the first voxel, which lies outside of every brain, and moved back to zero. The scale that the z-score
    changed cancels out.
    """
    x = x - x[:, :, :1, :1, :1]
    x = F.interpolate(x, size=(IMAGE, IMAGE, IMAGE), mode="trilinear", align_corners=False)
    inside = x != 0
    count = inside.sum(dim=(2, 3, 4), keepdim=True).clamp(min=1)
    mean = x.sum(dim=(2, 3, 4), keepdim=True) / count
    deviation = (((x - mean) * inside).square().sum(dim=(2, 3, 4), keepdim=True) / count).sqrt()
    return (x - mean) / deviation.where(deviation > 0, 1) * inside


class BrainIAC(Encoder):
    """BrainIAC's vision transformer: (B, 1, 128, 128, 128) -> (B, 768, 6, 6, 6), all tokens after the final norm.

    ``forward(x)[:, :, 0, 0, 0]`` is the feature that the published code takes. New modules hold random weights (torch's
    global generator), see ``load_brainiac``.
    """

    card = CARDS["brainiac"]
    projections = {"qkv": "attn.qkv", "proj": "attn.out_proj", "lin1": "mlp.linear1", "lin2": "mlp.linear2"}
    prefix = ("patch_embedding",)

    def __init__(self) -> None:
        super().__init__()
        # The published call but for save_attn, which only keeps the attention maps for pictures.
        vit = ViT(
            in_channels=1,
            img_size=(IMAGE, IMAGE, IMAGE),
            patch_size=(PATCH, PATCH, PATCH),
            hidden_size=WIDTH,
            mlp_dim=MLP,
            num_layers=DEPTH,
            num_heads=HEADS,
        )
        for block in vit.blocks:
            block.norm_cross_attn = nn.Identity()  # takes no part in the forward pass; not in the published file
        self.patch_embedding, self.blocks, self.norm = vit.patch_embedding, vit.blocks, vit.norm

    def embed(self, x: Tensor) -> Tensor:
        return self.patch_embedding(published_input(x))  # (B, 216, 768)

    def output(self, t: Tensor) -> Tensor:
        return self.norm(t).transpose(1, 2).unflatten(2, (GRID, GRID, GRID))  # (B, 768, 6, 6, 6)


def load_brainiac(path: str | Path | None, *, seed: int = 0) -> BrainIAC:
    """The encoder from ``BrainIAC.ckpt``, or with random weights; as :func:`fedbrain.models.encoder.load_encoder`."""
    return load_encoder(BrainIAC, path, CHECKPOINT, seed=seed)
