"""What of the encoder is trained: the second axis of the grid.

A tuning says where training begins (``cut``) and prepares an encoder for it (``apply``). All that lies before the cut is
the same in every round, so it is computed once per scan and kept: the longest frozen prefix. No torch at import: the config
is checked with these classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedbrain.errors import StudyError
from fedbrain.registry import module_of

if TYPE_CHECKING:
    from fedbrain.models.encoder import Encoder

COVARIATES = ("age", "sex")  # what a harmonization may keep: known of every scan, unlike the diagnosis
VOLUME, OUTPUT = "volume", "output"  # cuts: nothing is kept but the volume; the whole encoder's output is kept


def block_cut(index: int) -> str:
    """The cut before block ``index``: kept are the tokens that enter it."""
    return f"block{index}"


def start_of(cut: str) -> int | None:
    """The first block after a cut; None for ``volume`` and ``output``."""
    return int(cut.removeprefix("block")) if cut.startswith("block") else None


@dataclass(frozen=True)
class Tuning:
    """What every tuning has.

    Args:
        weights: "study", the weights of the config's encoder; "random", an untrained encoder of the same kind, as a control
            beside the pretrained one.

    Raises StudyError for options that make no sense; so do all tunings.
    """

    weights: str = "study"
    harmonization: ClassVar[str] = "none"

    def __post_init__(self):
        if self.weights not in ("study", "random"):
            raise StudyError(f"weights must be study or random, it is {self.weights!r}")

    def cut(self, depth: int) -> str:
        """Where training begins in an encoder of ``depth`` blocks: "volume", "block{k}" or "output"."""
        raise NotImplementedError

    def apply(self, encoder: "Encoder") -> None:
        """Prepares ``encoder`` in place: what is to be trained requires gradients afterwards, and nothing else does."""
        raise NotImplementedError


@dataclass(frozen=True)
class Frozen(Tuning):
    """The encoder as it is; only the head is trained.

    Args:
        harmonization: "none", or what adjusts the embeddings of all clients to each other before the training ("combat").
        covariates: what of "age" and "sex" the harmonization keeps.
    """

    harmonization: str = "none"
    covariates: Sequence[str] = ()

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "covariates", tuple(self.covariates))
        if self.harmonization != "none":
            module_of("harmonization", self.harmonization)  # known, or an error with the nearest name
        elif self.covariates:
            raise StudyError("covariates are those of a harmonization; name one (harmonization: combat)")
        if len(set(self.covariates)) < len(self.covariates) or not set(self.covariates) <= set(COVARIATES):
            raise StudyError(
                f"covariates must be among {', '.join(COVARIATES)}, each once, they are {', '.join(self.covariates)}; "
                "a diagnosis is no covariate: it would have to be known of a test scan before it is classified"
            )

    def cut(self, depth: int) -> str:
        return OUTPUT

    def apply(self, encoder: "Encoder") -> None:
        encoder.requires_grad_(False)


@dataclass(frozen=True)
class Full(Tuning):
    """All of the encoder is trained."""

    def cut(self, depth: int) -> str:
        return VOLUME

    def apply(self, encoder: "Encoder") -> None:
        encoder.requires_grad_(True)


@dataclass(frozen=True)
class Partial(Tuning):
    """Base of the tunings that touch certain blocks.

    Args:
        blocks: how many blocks, counted from the last; or a list of their indices from 0; or "all".
        cached: keep the tokens that enter the first of them, so that training never computes what lies before; False
            starts every step from the volume, to compare.
    """

    blocks: int | Sequence[int] | str = 2
    cached: bool = True

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.blocks, list):
            object.__setattr__(self, "blocks", tuple(self.blocks))
        count = isinstance(self.blocks, int) and not isinstance(self.blocks, bool) and self.blocks > 0
        indices = isinstance(self.blocks, tuple) and self.blocks and all(type(i) is int and i >= 0 for i in self.blocks)
        for name in ("cached", "biases"):
            if not isinstance(getattr(self, name, True), bool):
                raise StudyError(f"{name} must be true or false, it is {getattr(self, name)!r}")
        if not (count or indices or self.blocks == "all"):
            raise StudyError(f'blocks must be a number from 1 on, a list of indices or "all", it is {self.blocks!r}')

    def indices(self, depth: int) -> list[int]:
        """The blocks of an encoder of ``depth`` blocks, ascending. Raises StudyError for one that it does not have."""
        if self.blocks == "all":
            return list(range(depth))
        wanted = sorted(set(range(depth - self.blocks, depth) if isinstance(self.blocks, int) else self.blocks))
        if wanted[0] < 0 or wanted[-1] >= depth:
            raise StudyError(f"blocks: {self.blocks} does not fit an encoder of {depth} blocks (0 to {depth - 1})")
        return wanted

    def cut(self, depth: int) -> str:
        first = self.indices(depth)[0]
        return block_cut(first) if self.cached else VOLUME


def _tail(encoder: "Encoder") -> list:
    """What follows the last block."""
    return [module for name, module in encoder.named_children() if name != "blocks" and name not in encoder.prefix]


@dataclass(frozen=True)
class LastK(Partial):
    """The last blocks and what follows them (the neck) are trained as they are."""

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.blocks, int):
            raise StudyError(f"blocks must be a number of last blocks, it is {self.blocks!r}")

    def apply(self, encoder: "Encoder") -> None:
        encoder.requires_grad_(False)
        for index in self.indices(encoder.depth):
            encoder.blocks[index].requires_grad_(True)
        for module in _tail(encoder):
            module.requires_grad_(True)


@dataclass(frozen=True)
class Norm(Partial):
    """The layer norms' scales and shifts, and with ``biases`` every bias, of the blocks and of what follows them.

    The patch embedding's bias is left alone, so that even with all blocks the tokens that enter the first one are kept. (BitFit:
    Ben Zaken et al., ACL 2022; which norms and biases is ours.)
    """

    blocks: int | Sequence[int] | str = "all"
    biases: bool = True

    def apply(self, encoder: "Encoder") -> None:
        from torch.nn import LayerNorm

        encoder.requires_grad_(False)
        for part in [*(encoder.blocks[index] for index in self.indices(encoder.depth)), *_tail(encoder)]:
            for module in part.modules():
                if isinstance(module, LayerNorm):
                    module.requires_grad_(True)
                elif self.biases and getattr(module, "bias", None) is not None:
                    module.bias.requires_grad_(True)
