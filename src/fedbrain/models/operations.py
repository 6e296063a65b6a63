"""Multiply-accumulate operations of a forward pass, counted from the operations that torch really runs."""

import logging

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from fedbrain.models.cards import CARDS
from fedbrain.models.classifier import Classifier, EncoderSource
from fedbrain.models.encoder import VOLUME
from fedbrain.models.tuning import OUTPUT, start_of
from fedbrain.models.tuning import VOLUME as FROM_VOLUME
from fedbrain.registry import lookup


def count_operations(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of ``model(x)`` in its matrix products, convolutions and attentions; element-wise work is not counted.

    ``x`` may lie on the meta device: then nothing is computed and nothing allocated.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors = {name: tensor.to(x.device) for name, tensor in tensors.items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(model, tensors, (x,))
    return counter.get_total_flops() // 2


def forward_operations(model: Classifier, source: EncoderSource) -> dict[str, int]:
    """Multiply-accumulates for one scan: ``cut``, what every training step computes; ``volume``, from the volume on."""
    was_training = model.training
    model.eval()
    volume = torch.empty(1, 1, *VOLUME, device="meta")
    if model.cut == FROM_VOLUME:
        whole = count_operations(model, volume)
        return {"cut": whole, "volume": whole}
    card = CARDS[source.name]
    encoder = bare_encoder(source.name)
    if model.cut == OUTPUT:
        kept = torch.empty(1, card.channels, *card.grid, device="meta")
        before = count_operations(encoder, volume)
    else:
        start = start_of(model.cut)
        with torch.no_grad():
            kept = encoder.tokens(volume, start)
        before = count_operations(_Prefix(encoder, start), volume)
    after = count_operations(model, kept)
    model.train(was_training)
    return {"cut": after, "volume": before + after}


def bare_encoder(name: str) -> nn.Module:
    """The encoder without any memory for its weights, to count with."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # its warning of random weights would be about none
    try:
        with torch.device("meta"):
            return lookup("encoder", name)(None)
    finally:
        logging.disable(level)


class _Prefix(nn.Module):
    def __init__(self, encoder: nn.Module, start: int) -> None:
        super().__init__()
        self.encoder, self.start = encoder, start

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder.tokens(x, self.start)
