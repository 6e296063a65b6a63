"""Multiply-accumulate operations of a forward pass, counted from the operations that torch really runs."""

import logging
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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
    with _Counter() as counter, torch.no_grad():
        functional_call(model, tensors, (x,))
    return counter.total // 2


class _Counter(TorchDispatchMode):
    """What torch.utils.flop_counter.FlopCounterMode counts, by its formulas; that loads torch's compiler, over a second of each job."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def cost_of(model: Classifier, source: EncoderSource) -> dict[str, dict[str, int]]:
    """What a cell's model costs, before it is trained.

    Returns ``parameters``: ``trained``, and ``full``, those of the whole network, encoder and head, had all been trained;
    ``operations``: multiply-accumulates of a forward pass of one scan from the ``volume`` on, from the ``cut`` on (what a
    training step computes), and ``reference``, the same from the volume with the encoder's own published implementation (0 where
    it is not known or not used).
    """
    training, card = model.training, CARDS[source.name]
    model.eval()
    volume = torch.empty(1, 1, *VOLUME, device="meta")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    head = sum(parameter.numel() for parameter in model.head.parameters())
    if model.cut == FROM_VOLUME and model.encoder is None:
        operations = count_operations(model, volume)
        full, operations = head, {"volume": operations, "cut": operations, "reference": 0}
    else:
        parameters, whole, before, kept = _encoder_cost(source.name, model.cut)
        full = head + parameters
        # Of a head alone on real tensors: operations on the meta device load torch's compiler.
        after = count_operations(model, torch.zeros(kept, device=None if model.encoder is None else "meta"))
        saved = card.reference_operations - whole if card.reference_operations else 0
        reference = before + after + saved if saved else 0
        operations = {"volume": before + after, "cut": after, "reference": reference}
    model.train(training)
    return {"parameters": {"trained": trained, "full": full}, "operations": operations}


@cache
def _encoder_cost(name: str, cut: str) -> tuple[int, int, int, tuple[int, ...]]:
    """Of an encoder: its parameters, the operations of all of it and of what lies before ``cut``, and the shape of what is kept there."""
    encoder, volume = bare_encoder(name), torch.empty(1, 1, *VOLUME, device="meta")
    whole, before, kept = CARDS[name].operations or count_operations(encoder, volume), 0, volume.shape
    if cut == OUTPUT:
        before, kept = whole, (1, CARDS[name].channels, *CARDS[name].grid)
    elif cut != FROM_VOLUME:
        with torch.no_grad():
            kept = encoder.tokens(volume, start_of(cut)).shape
        before = count_operations(_Prefix(encoder, start_of(cut)), volume)
    return sum(parameter.numel() for parameter in encoder.parameters()), whole, before, tuple(kept)


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
