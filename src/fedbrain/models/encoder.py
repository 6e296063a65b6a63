"""What every image encoder of the registry is: a transformer whose frozen first blocks can be computed once and kept."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fedbrain.models.cards import EncoderCard
from fedbrain.models.weights import Layout, read_weights

logger = logging.getLogger(__name__)

VOLUME = (128, 128, 128)  # voxels of 1.5 mm, axes RAS: what the preprocessing writes, whatever the encoder makes of it


class Encoder(nn.Module):
    """A pretrained transformer: the study's volume (B, 1, 128, 128, 128) to a map (B, channels, *grid) as its card says.

    The volume is T1w at 1.5 mm isotropic, axes in RAS order, z-scored by the voxels > 0 (``preprocessing.intensity:
    encoder``). What the published encoder asks beyond that, such as another size, its ``embed`` does itself.

    ``forward(x)`` is ``from_tokens(tokens(x, k), k)`` for every k in 0..depth. A subclass fills ``blocks`` and writes
    ``embed`` and ``output``.
    """

    card: EncoderCard
    projections: Mapping[str, str]  # an adaptable linear layer's name -> its path within a block
    prefix: tuple[str, ...]  # the modules and parameters that only ``embed`` uses
    blocks: nn.ModuleList
    first: int = 0  # blocks before it are forgotten
    embeds: bool = True  # until ``drop_prefix``

    @property
    def depth(self) -> int:
        """The number of blocks, forgotten ones included."""
        return len(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.from_tokens(self.tokens(x, 0), 0)

    def embed(self, x: Tensor) -> Tensor:
        """The tokens that enter block 0: (B, 1, 128, 128, 128) -> (B, positions, width)."""
        raise NotImplementedError

    def output(self, t: Tensor) -> Tensor:
        """What follows the last block: (B, positions, width) -> (B, channels, *grid)."""
        raise NotImplementedError

    def tokens(self, x: Tensor, upto: int) -> Tensor:
        """The tokens that enter block ``upto``: (B, 1, 128, 128, 128) -> (B, positions, width).

        Raises ValueError for another shape, or for a block that is not there; RuntimeError after ``drop_prefix``.
        """
        if not self.embeds:
            raise RuntimeError(
                f"this encoder has forgotten what comes before block {self.first} (drop_prefix) and takes no volumes; "
                "give it tokens (from_tokens), or load it again"
            )
        if x.shape[1:] != (1, *VOLUME):
            raise ValueError(f"the encoder takes (B, 1, {', '.join(map(str, VOLUME))}), not {tuple(x.shape)}")
        self._check(upto)
        t = self.embed(x)
        for block in self.blocks[:upto]:
            t = block(t)
        return t

    def from_tokens(self, t: Tensor, start: int) -> Tensor:
        """Blocks ``start`` to the last and the output: (B, positions, width) -> (B, channels, *grid).

        Raises ValueError for a block that is not there or is forgotten.
        """
        self._check(start)
        if start < self.first:
            raise ValueError(f"this encoder has forgotten the blocks before {self.first}; it cannot start at {start}")
        for block in self.blocks[start:]:
            t = block(t)
        return self.output(t)

    def drop_prefix(self, start: int) -> None:
        """Forgets, to save memory, all that comes before block ``start``: the embedding and the earlier blocks.

        The names of the parameters that stay do not change (``blocks.10.attn...`` stays block 10). With ``start`` 0 the
        embedding alone goes. ``from_tokens(t, k)`` works for k >= ``start``; ``tokens`` and ``forward`` raise from then on.
        """
        self._check(start)
        for name in self.prefix:
            setattr(self, name, None)
        for i in range(start):
            self.blocks[i] = nn.Identity()
        self.first, self.embeds = max(self.first, start), False

    def _check(self, block: int) -> None:
        if not 0 <= block <= self.depth:
            raise ValueError(
                f"block {block} is not there: this encoder has {self.depth}, so 0 to {self.depth} can be named"
            )


def load_encoder(kind: type[Encoder], path: str | Path | None, layout: Layout, *, seed: int = 0) -> Encoder:
    """An encoder of ``kind`` in eval mode, on the CPU.

    Args:
        kind: the class.
        path: the published checkpoint, or None for random weights.
        layout: where the weights lie in such a checkpoint.
        seed: of the random weights; without effect where ``path`` is given. The caller's random state stays as it is.

    Raises:
        StudyError: the file is missing, damaged, of another kind, or holds another network's weights.
    """
    if path is None:
        logger.warning("RANDOM WEIGHTS (seed %d) in the image encoder: embeddings carry no pretraining", seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return kind().eval()
    with torch.device("meta"):  # nothing is drawn only to be overwritten
        encoder = kind()
    shapes = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    encoder.load_state_dict(read_weights(path, shapes, layout), assign=True)
    return encoder.eval()
