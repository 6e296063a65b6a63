"""SCAFFOLD's clients."""

import torch

from fedbrain.federated.aggregation.scaffold import corrected_gradient, own_control
from fedbrain.federated.local import LocalRound, Turn
from fedbrain.federated.task import SGD


class Controlled(LocalRound):
    """SCAFFOLD's client: SGD along g - c_k + c; its control c_k afterwards is the mean gradient of its steps (option II)."""

    def __init__(self, learning_rate: float | None):
        self._rate = learning_rate

    def train(self, turn: Turn) -> float:
        rate = turn.options.learning_rate
        if self._rate is not None:
            rate = self._rate * turn.options.share(turn.round)
        server = {name: control for name, control in turn.beside.items() if name in turn.trained()}
        own = {name: turn.kept.get(name, torch.zeros_like(control)) for name, control in server.items()}
        before = {name: parameter.detach().clone() for name, parameter in turn.trained().items() if name in server}
        steps = 0

        @torch.no_grad()
        def correct() -> None:
            nonlocal steps
            steps += 1
            trained = turn.trained()
            gradients = {name: trained[name].grad for name in server}
            for name, gradient in corrected_gradient(gradients, own, server).items():
                trained[name].grad = gradient

        decay = turn.options.weight_decay
        loss = turn.train(optimizer=lambda parameters: SGD(parameters, rate, decay), before_step=correct)
        after = {name: parameter.detach() for name, parameter in turn.trained().items()}
        turn.keep |= own_control(own, server, before, after, steps, rate)
        # Of what is not trained here there is no control, and the server's does not move.
        turn.send |= {
            name: turn.keep[name] - own[name] if name in own else torch.zeros_like(control)
            for name, control in turn.beside.items()
        }
        return loss
