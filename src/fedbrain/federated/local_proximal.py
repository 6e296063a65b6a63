"""Clients that are held near the model that they received: FedProx's, and the own models of Ditto's."""

import torch
from torch import Tensor

from fedbrain.federated.aggregation.fedprox import proximal_gradient
from fedbrain.federated.local import LocalRound, Turn


class Proximal(LocalRound):
    """FedProx's client: mu / 2 ||w - W||^2 over the shared parameters is part of the loss."""

    def __init__(self, mu: float):
        self._mu = mu

    def train(self, turn: Turn) -> float:
        return turn.train(before_step=lambda: pull(turn, self._mu))


class WithOwnModel(LocalRound):
    """Ditto's client: FedAvg's part, and a model of its own that is held near the one received.

    Its own model starts from the model that it receives first, and sees the scans in an order of its own.
    """

    def __init__(self, strength: float):
        self._strength = strength

    def train_personal(self, turn: Turn) -> dict[str, Tensor]:
        turn.model.load_state_dict(dict(turn.personal or turn.received), strict=False)
        turn.train(before_step=lambda: pull(turn, self._strength))
        state = turn.model.state_dict()
        return {name: state[name] for name in turn.received}


def pull(turn: Turn, mu: float) -> None:
    """Adds mu (w - W) to the gradients of the shared parameters W that were received."""
    trained = {name: parameter for name, parameter in turn.trained().items() if name in turn.received}
    with torch.no_grad():
        anchor = {name: turn.received[name] for name in trained}
        for name, gradient in proximal_gradient(trained, anchor, mu).items():
            trained[name].grad += gradient
