"""Clients that train the global model on for themselves, once the federation has ended."""

from dataclasses import replace

from torch import Tensor

from fedbrain.federated.local import LocalRound, Turn


class FineTuning(LocalRound):
    """FedAvg's client; its own model is the one received, trained on for some epochs, with the learning rate of a first round."""

    def __init__(self, epochs: int):
        self._epochs = epochs

    def train_personal(self, turn: Turn) -> dict[str, Tensor]:
        turn.model.load_state_dict(dict(turn.received), strict=False)
        turn.train(replace(turn.options, local_epochs=self._epochs))
        state = turn.model.state_dict()
        return {name: state[name] for name in turn.received}
