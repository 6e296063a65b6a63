"""A transformer over 4 x 4 x 4 patches of the study's volume, small enough to be trained within a test."""

import torch
import torch.nn.functional as F
from torch import nn

from fedbrain.models.cards import EncoderCard
from fedbrain.models.classifier import Classifier
from fedbrain.models.encoder import Encoder
from fedbrain.models.explanation import FromVolume
from fedbrain.models.heads import LinearHead

WIDTH, HEADS, PATCH, GRID, DEPTH = 8, 2, 32, 4, 3
CARD = EncoderCard(
    title="Tiny",
    input_shape=(128, 128, 128),
    spacing=1.5,
    channels=WIDTH,
    grid=(GRID, GRID, GRID),
    width=WIDTH,
    depth=DEPTH,
    pooling="mean",
    licence="none",
    origin="here",
    file="tiny.pth",
    reference="none",
    pretraining=(),
    pretraining_note="none",
)


class TinyAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class TinyBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(WIDTH), TinyAttention(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.attn(self.norm(x))
        return x + F.gelu(self.mlp(x))


class TinyEncoder(Encoder):
    projections = {"qkv": "attn.qkv"}
    prefix = ("patch", "position")

    def __init__(self, depth=DEPTH):
        super().__init__()
        self.patch = nn.Conv3d(1, WIDTH, kernel_size=PATCH, stride=PATCH)
        self.position = nn.Parameter(torch.randn(1, GRID**3, WIDTH) * 0.2)
        self.blocks = nn.ModuleList(TinyBlock() for _ in range(depth))
        self.neck = nn.Linear(WIDTH, WIDTH)

    def embed(self, x):
        return self.patch(x).flatten(2).transpose(1, 2) + self.position

    def output(self, t):
        return self.neck(t).transpose(1, 2).unflatten(2, (GRID, GRID, GRID))


def load_tiny(path, *, seed=0):
    """As the registry's encoders are loaded; random weights only."""
    assert path is None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyEncoder().eval()


def tiny_model(cut="output", depth=DEPTH, seed=0):
    """A classifier from the volume on, cut as a tuning would cut it; the same weights for every cut."""
    torch.manual_seed(seed)
    encoder, head = TinyEncoder(depth).eval(), LinearHead(channels=WIDTH)
    torch.manual_seed(seed)
    again = TinyEncoder(depth).eval()
    if cut == "volume":
        return FromVolume(Classifier(cut, encoder, head))
    if cut == "output":
        return FromVolume(Classifier(cut, None, head), encoder)
    again.drop_prefix(int(cut.removeprefix("block")))
    return FromVolume(Classifier(cut, again, head), encoder)


def volume(seed=0):
    """(128, 128, 128): noise about 0 in a box, background at -1."""
    values = torch.full((128, 128, 128), -1.0)
    values[16:112, 8:120, 24:104] = torch.randn(96, 112, 80, generator=torch.Generator().manual_seed(seed))
    return values
