"""The model of a cell: what is trained of the encoder, and the head over it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedbrain.models.cards import CARDS
from fedbrain.models.heads import build_head
from fedbrain.models.tuning import OUTPUT, VOLUME, Frozen, Tuning, start_of
from fedbrain.registry import TUNING_OF_REFERENCE, base_name, lookup


@dataclass(frozen=True)
class EncoderSource:
    """Which encoder: a name of the registry, the path of its published weights (None: random ones), and their seed."""

    name: str = "sam_med3d"
    weights: str | None = None
    seed: int = 0

    @classmethod
    def of(cls, entry: Mapping | None) -> "EncoderSource | None":
        """From name, weights (a path, "random" or None) and seed as the workflow hands them on; None for no encoder."""
        if entry is None:
            return None
        weights = None if entry["weights"] == "random" else entry["weights"]
        return cls(entry["name"], weights, entry["seed"])


class Classifier(nn.Module):
    """``head`` over what ``encoder`` makes of a kept input: (B, ...) -> (B, classes) logits.

    Args:
        cut: what the input is: "volume" (B, 1, 128, 128, 128), "block{k}" (B, tokens, width), the tokens that enter block k,
            or "output" (B, channels, grid), for which there is no encoder left.
        encoder: from the cut on; None where the head takes the input as it is.
    """

    def __init__(self, cut: str, encoder: nn.Module | None, head: nn.Module) -> None:
        super().__init__()
        self.cut = cut
        self.encoder = encoder
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        if self.encoder is not None:
            start = start_of(self.cut)
            x = self.encoder(x) if start is None else self.encoder.from_tokens(x, start)
        return self.head(x)

    def train(self, mode: bool = True) -> "Classifier":
        """As torch's, but what is frozen stays as in evaluation: its running statistics and dropout are not trained."""
        super().train(mode)
        for module in list(self.modules())[1:]:  # the first is this one
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self


def build_classifier(
    head: str,
    tuning: Tuning | None = None,
    *,
    head_options: Mapping | None = None,
    source: EncoderSource | None = None,
    seed: int = 0,
) -> Classifier:
    """The model of a cell, on the CPU; what requires gradients is what the cell trains.

    ``seed`` is of the head's and the adapters' weights: a head starts the same whatever the tuning. Torch's random state stays as
    it is. Raises StudyError for unknown names or options and for weights that cannot be loaded.
    """
    tuning, source = tuning or Frozen(), source or EncoderSource()
    card = CARDS[source.name]
    kind = base_name(head, head_options or {})
    cut = VOLUME if TUNING_OF_REFERENCE.get(kind) == "full" else tuning.cut(card.depth)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = build_head(head, head_options, channels=card.channels)
        if cut == OUTPUT or kind in TUNING_OF_REFERENCE:
            return Classifier(cut, None, built)
        weights = None if tuning.weights == "random" else source.weights
        encoder = lookup("encoder", source.name)(weights, seed=source.seed)
        tuning.apply(encoder)
        if (start := start_of(cut)) is not None:
            encoder.drop_prefix(start)
    return Classifier(cut, encoder, built)
