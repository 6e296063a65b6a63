"""Clients with two adapters on every layer, of which one stays."""

from fedbrain.federated.local import LocalRound, Turn
from fedbrain.federated.orthogonality import Orthogonality


class DualPairs(LocalRound):
    """A client with a pair of factors that is shared and one that stays: Med-DualLoRA's, and with a penalty FedOPAL's."""

    def __init__(self, *, alternating: bool = False, penalty: str | None = None, strength: float = 0.0):
        self._alternating, self._penalty, self._strength = alternating, penalty, strength

    def train(self, turn: Turn) -> float:
        if self._penalty is None:
            return self._phases(turn)
        with Orthogonality(turn.model, self._penalty).watched() as overlap:
            return self._phases(turn, penalty=lambda: self._strength * overlap())

    def _phases(self, turn: Turn, **hooks) -> float:
        if not self._alternating:
            return turn.train(**hooks)
        trained = turn.trained()
        for stays in (True, False):
            for name, parameter in trained.items():
                parameter.requires_grad_((name in turn.private) == stays)
            loss = turn.train(**hooks)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        return loss
