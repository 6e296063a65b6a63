"""LoRA as a tuning: which adapters, how large, on which layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedbrain.errors import StudyError
from fedbrain.models.tuning import Partial

if TYPE_CHECKING:
    from fedbrain.models.encoder import Encoder

PARTS = ("q", "k", "v")  # thirds of a fused projection


@dataclass(frozen=True)
class LoRA(Partial):
    """Low-rank adapters (Hu et al., ICLR 2022) beside frozen linear layers: W x + (alpha / rank) B A x, by peft.

    B starts at zero, so that the first forward pass is that of the encoder, bit by bit. Defaults are ours: the published study
    names "selected attention blocks" without saying which.

    Args:
        rank: of A and B.
        alpha: numerator of the scale.
        dropout: on the adapters' input, in [0, 1).
        targets: layers of a block. "qkv" is one adapter on the fused projection; "q", "k", "v" are adapters of their own on
            its thirds (as in FLAP-SAM, Asokan et al., arXiv 2407.21739: q and v); "proj" the attention's output; "lin1" and
            "lin2" the two layers of the MLP.
    """

    TARGETS: ClassVar[tuple[str, ...]] = ("qkv", *PARTS, "proj", "lin1", "lin2")
    adapters: ClassVar[tuple[str, ...]] = (
        "default",
    )  # peft's names of what a layer gets; the config's check reads them

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: Sequence[str] = ("qkv",)

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.targets, list):
            object.__setattr__(self, "targets", tuple(self.targets))
        if type(self.rank) is not int or self.rank < 1:
            raise StudyError(f"rank must be a whole number from 1 on, it is {self.rank!r}")
        for name, fits, what in (
            ("alpha", lambda value: 0 < value < float("inf"), "above 0"),
            ("dropout", lambda value: 0 <= value < 1, "from 0 to below 1"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
                raise StudyError(f"{name} must be a number {what}, it is {value!r}")
        known = ", ".join(self.TARGETS)
        if not isinstance(self.targets, tuple) or not self.targets or not all(t in self.TARGETS for t in self.targets):
            raise StudyError(f"targets must be a list of {known}, it is {self.targets!r}")
        if "qkv" in self.targets and set(self.targets) & set(PARTS):
            raise StudyError("targets: qkv is q, k and v in one; name either qkv or its parts")

    def apply(self, encoder: "Encoder") -> None:
        from fedbrain.models.adapters import inject

        encoder.requires_grad_(False)
        inject(encoder, self, self.indices(encoder.depth))


@dataclass(frozen=True)
class DualLoRA(LoRA):
    """Two adapters on every layer: "default", and "local", for rules that keep the second with each client (Med-DualLoRA, FedOPAL).

    The first is that of ``lora`` with the same options, down to the numbers that A starts with.

    Args:
        local_rank, local_alpha: of the second; None takes those of the first.
    """

    adapters: ClassVar[tuple[str, ...]] = ("default", "local")

    local_rank: int | None = None
    local_alpha: float | None = None

    def __post_init__(self):
        super().__post_init__()
        self.local()  # its options are checked like those of the first

    def local(self) -> LoRA:
        """The second adapter alone."""
        rank = self.rank if self.local_rank is None else self.local_rank
        alpha = self.alpha if self.local_alpha is None else self.local_alpha
        return LoRA(self.weights, self.blocks, self.cached, rank, alpha, self.dropout, self.targets)

    def apply(self, encoder: "Encoder") -> None:
        from fedbrain.models.adapters import inject

        encoder.requires_grad_(False)
        inject(encoder, self, self.indices(encoder.depth))
        inject(encoder, self.local(), self.indices(encoder.depth), adapter="local")
