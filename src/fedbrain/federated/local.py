"""How a client trains in one round: as FedAvg's clients do. What rules want otherwise is in modules of their own (local_*.py)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedbrain.devices import FittingBatch
from fedbrain.federated.data import Samples
from fedbrain.federated.task import TrainingOptions, train


@dataclass
class Turn:
    """One client's part of one round, as local training sees it.

    ``model`` holds the received tensors and the client's private ones, and requires gradients for what is to be trained in this
    round. What ``send`` and ``keep`` hold afterwards goes to the server beside the model, and to this client's next round.
    """

    round: int
    model: nn.Module
    samples: Samples
    options: TrainingOptions  # of this round
    generator: torch.Generator
    device: str
    fitting: FittingBatch
    received: Mapping[str, Tensor]  # the shared tensors
    private: tuple[str, ...] = ()  # names of the tensors that stay
    beside: Mapping[str, Tensor] = field(default_factory=dict)  # what the rule sent beside them
    kept: Mapping[str, Tensor] = field(default_factory=dict)  # what ``keep`` held last
    personal: Mapping[str, Tensor] = field(default_factory=dict)  # the client's own model, where there is one
    send: dict[str, Tensor] = field(default_factory=dict)
    keep: dict[str, Tensor] = field(default_factory=dict)

    def train(self, options: TrainingOptions | None = None, **hooks) -> float:
        """Plain training of what requires gradients; ``hooks`` are those of fedbrain.federated.task.train."""
        options = options or self.options
        return train(self.model, self.samples, options, self.generator, self.device, self.fitting, **hooks)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that require gradients, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}


class LocalRound:
    """A client's round under FedAvg. Rules override what they want otherwise."""

    def train(self, turn: Turn) -> float:
        """Trains the model whose shared tensors are sent; its mean training loss."""
        return turn.train()

    def train_personal(self, turn: Turn) -> dict[str, Tensor]:
        """Trains the client's own model, where the rule declares one (``own_model``); the tensors that are kept of it.

        In every round, once the shared one has been read; or once, with the chosen model as what was received.
        """
        raise NotImplementedError
