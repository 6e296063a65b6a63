"""The image encoder of SAM-Med3D (``vit_b_ori``), exact and without its 2,744 x 2,744 attention maps.

A vision transformer over an 8 x 8 x 8 grid of tokens (patches of 16^3 voxels) with 12 blocks of width 768; blocks 2, 5,
8, 11 attend globally, the others within a window of 14^3. Parameter names are those of the released model without their
``image_encoder.`` prefix. Reference: Wang et al., SAM-Med3D, arXiv 2310.15161; implementation in the package medim.

Two facts about the reference shape this file.

*Misaligned relative positions.* With q[d,h,w] the unscaled query at grid position (d,h,w) and Rd, Rh, Rw the gathered
position tables, the reference adds to the logit of key (kd,kh,kw)

    A[d,h,w,kw] + B[d,h,kd,kw] + C[d,h,kh,kw],   where   A[d,h,w,kw] = q[d,h,w] . Rd[d,kw]
                                                         B[d,h,j,kw] = q[d,h,j] . Rh[h,kw]
                                                         C[d,h,j,kw] = q[d,h,j] . Rw[j,kw]

so B and C come from *other* queries of the same (d,h) line, picked by the key. The intended axes would be others, but the
released weights were trained with these: correcting them would compute other embeddings.

*Pads attend.* In a windowed block the reference pads the grid with zeros from 8^3 to 14^3 after the first norm and does not
mask the 2,232 pads. A zero token passes through qkv as the bias alone, so all pads share one query b_q, one key b_k and one
value b_v, and their part of a softmax row is that of one key b_k with value b_v and the log-sum of their position terms as
bias. A, B and C factorise that sum for each kw: the sum over (kd,kh) of exp(B + C) is a product of a sum over kd and a
sum over kh, split into grid (0..7) and pad (8..13) positions so that grid keys can be left out. Hence 512 queries see 513
keys, one of them for all pads: 52 instead of 184 GMACs. Gradients take the same way. Where an adapter wraps qkv, it too
sees zeros at the pads; the pad is therefore sent through qkv as a real zero token, whatever qkv is.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbrain.models.cards import CARDS
from fedbrain.models.encoder import Encoder, load_encoder
from fedbrain.models.weights import Layout

PATCH, GRID, WINDOW = 16, 8, 14  # voxels, tokens, tokens; each along one axis
WIDTH, HEADS, DEPTH, CHANNELS = 768, 12, 12, 384
GLOBAL_BLOCKS = (2, 5, 8, 11)
TOKENS = GRID**3

# The whole model's weights, beside the optimizer's state and the training arguments (argparse.Namespace). The weights of
# the prompt encoder and the mask decoder are left aside.
CHECKPOINT = Layout(
    card=CARDS["sam_med3d"],
    container="model_state_dict",
    prefix="image_encoder.",
    classes=(argparse.Namespace,),
    hint="its registry name vit_b is another network, and files made for that one do not fit",
)


def gather_positions(table: Tensor, queries: int, keys: int) -> Tensor:
    """Rows of a relative position table (2 * keys - 1, C) by query minus key: (queries, keys, C)."""
    offset = torch.arange(queries, device=table.device)[:, None] - torch.arange(keys, device=table.device)
    return table[offset + keys - 1]


def pad_bias(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Logit bias of the one key that stands for all pads of a window: log of the sum of exp(A + B + C) over them.

    Args:
        a: (..., GRID, WINDOW), over w and kw; b: (..., WINDOW, WINDOW), over kd and kw; c: the same over kh and kw.

    Returns:
        (..., GRID), one number per query along w.
    """
    b_grid, b_pad = b[..., :GRID, :].logsumexp(-2), b[..., GRID:, :].logsumexp(-2)  # (..., WINDOW) over kw
    c_grid, c_pad = c[..., :GRID, :].logsumexp(-2), c[..., GRID:, :].logsumexp(-2)
    c_all = torch.logaddexp(c_grid, c_pad)
    beyond = torch.logaddexp(b_grid, b_pad) + c_all  # kw >= 8: every (kd, kh) is a pad
    within = torch.logaddexp(b_pad + c_all, b_grid + c_pad)  # kw < 8: at least one of kd, kh is beyond the grid
    by_kw = torch.cat([within[..., :GRID], beyond[..., GRID:]], dim=-1)
    return (a + by_kw[..., None, :]).logsumexp(-1)


class Attention(nn.Module):
    """Attention of the 8^3 grid with the reference's position terms, global (``span`` 8) or in a window (``span`` 14)."""

    def __init__(self, span: int) -> None:
        super().__init__()
        self.span, self.padded = span, span > GRID
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.rel_pos_d = nn.Parameter(torch.zeros(2 * span - 1, WIDTH // HEADS))
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * span - 1, WIDTH // HEADS))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * span - 1, WIDTH // HEADS))

    def forward(self, x: Tensor) -> Tensor:  # (B, 512, 768)
        batch = x.shape[0]
        if self.padded:
            x = F.pad(x, (0, 0, 0, 1))  # (B, 513, 768): the last token is the pad
        qkv = self.qkv(x).view(batch, -1, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, nh, keys, 64), keys = 512 or 513
        q, q_pad = q[:, :, :TOKENS], q[:, :, TOKENS:]
        bias = self.position_bias(q, q_pad)  # (B, nh, 512, keys)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, nh, 512, 64)
        return self.proj(x.transpose(1, 2).reshape(batch, TOKENS, WIDTH))

    def position_bias(self, q: Tensor, q_pad: Tensor) -> Tensor:
        """The additive logit bias of every key; q (B, nh, 512, 64), q_pad (B, nh, 1, 64) -> (B, nh, 512, keys)."""
        batch = q.shape[0]
        q = q.unflatten(2, (GRID, GRID, GRID))  # (B, nh, d, h, w, 64)
        line = q  # the queries of each (d, h) line, pads included
        if self.padded:
            pads = q_pad[:, :, None, None].expand(-1, -1, GRID, GRID, self.span - GRID, -1)
            line = torch.cat([q, pads], dim=4)  # (B, nh, d, h, span, 64)
        # a (B, nh, d, h, w, kw), b (B, nh, d, h, kd, kw), c (B, nh, d, h, kh, kw)
        a = torch.einsum("bndhwc,dkc->bndhwk", q, gather_positions(self.rel_pos_d, GRID, self.span))
        b = torch.einsum("bndhjc,hkc->bndhjk", line, gather_positions(self.rel_pos_h, GRID, self.span))
        c = torch.einsum("bndhjc,jkc->bndhjk", line, gather_positions(self.rel_pos_w, self.span, self.span))
        by_line = b[..., :GRID, None, :GRID] + c[..., None, :GRID, :GRID]  # (B, nh, d, h, kd, kh, kw) for all w
        # Filled in place, since concatenating the pad's column to the map would cost as much as the attention itself.
        bias = a.new_empty(batch, HEADS, GRID, GRID, GRID, TOKENS + self.padded)
        grid = bias[..., :TOKENS].unflatten(-1, (GRID, GRID, GRID))  # (B, nh, d, h, w, kd, kh, kw)
        grid.copy_(by_line[..., None, :, :, :])
        grid += a[..., None, None, :GRID]
        if self.padded:
            bias[..., TOKENS] = pad_bias(a, b, c)
        return bias.flatten(2, 4)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.lin2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # (B, 512, 768)
        return self.lin2(F.gelu(self.lin1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, span: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = Attention(span)
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp = MLP()

    def forward(self, x: Tensor) -> Tensor:  # (B, 512, 768)
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, D, H, W), each voxel by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class PatchEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv3d(1, WIDTH, kernel_size=PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:  # (B, 1, 128, 128, 128)
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, 512, 768)


class ImageEncoder(Encoder):
    """SAM-Med3D's image encoder: (B, 1, 128, 128, 128) -> (B, 384, 8, 8, 8); 92,924,928 parameters.

    The study's volume is its published input as it is. New modules hold random weights (torch's global generator), see
    ``load_image_encoder``.
    """

    card = CARDS["sam_med3d"]
    projections = {"qkv": "attn.qkv", "proj": "attn.proj", "lin1": "mlp.lin1", "lin2": "mlp.lin2"}
    prefix = ("patch_embed", "pos_embed")

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding()
        self.pos_embed = nn.Parameter(torch.zeros(1, GRID, GRID, GRID, WIDTH))
        self.blocks = nn.ModuleList(Block(GRID if i in GLOBAL_BLOCKS else WINDOW) for i in range(DEPTH))
        self.neck = nn.Sequential(
            nn.Conv3d(WIDTH, CHANNELS, kernel_size=1, bias=False),
            ChannelNorm(CHANNELS, eps=1e-6),
            nn.Conv3d(CHANNELS, CHANNELS, kernel_size=3, padding=1, bias=False),
            ChannelNorm(CHANNELS, eps=1e-6),
        )
        for name, parameter in self.named_parameters():
            if "pos" in name:  # ours: the reference starts these tables at zero and learns them
                nn.init.trunc_normal_(parameter, std=0.02)

    def embed(self, x: Tensor) -> Tensor:
        return self.patch_embed(x) + self.pos_embed.flatten(1, 3)  # (B, 512, 768)

    def output(self, t: Tensor) -> Tensor:
        return self.neck(t.transpose(1, 2).unflatten(2, (GRID, GRID, GRID)))  # (B, 384, 8, 8, 8)


def load_image_encoder(path: str | Path | None, *, seed: int = 0) -> ImageEncoder:
    """The encoder from ``sam_med3d_turbo.pth``, or with random weights; as :func:`fedbrain.models.encoder.load_encoder`."""
    return load_encoder(ImageEncoder, path, CHECKPOINT, seed=seed)
