"""Personalised models: FedAvg over a part of the tensors, the rest stays with each client; and Ditto, a model for each.

What stays is a declaration (``private``, an option of every rule): these are its published forms. A client is evaluated, and makes
its predictions, with what it has: the shared tensors of a round and its own of the same round.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.averages import FedAvg
from fedbrain.federated.aggregation.rule import always_private, check_strength

if TYPE_CHECKING:
    from fedbrain.federated.local import LocalRound


@dataclass(frozen=True)
class FedPer(FedAvg):
    """The head stays with the client, and what else ``private`` names (Arivazhagan et al., arXiv 1912.00818)."""

    def __post_init__(self):
        always_private(self, "head")


@dataclass(frozen=True)
class FedBN(FedAvg):
    """Normalization layers stay with the client: scales, shifts, statistics (Li et al., ICLR 2021, there of batch norms).

    And what else ``private`` names.
    """

    def __post_init__(self):
        always_private(self, "norm")


@dataclass(frozen=True)
class FLOP(FedAvg):
    """A part of the network is shared, the last layers stay (Yang et al., KDD 2021). Which ones is ours: the head's last layer."""

    private: Sequence[str] = field(default=("head.classify.*",), kw_only=True)


@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg's model for all, and beside it one for each client, held near the received one while it trains (Li et al.,
    "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021).

    The client's own model v_k minimises its loss + lambda / 2 ||v_k - W||^2, for as many epochs as the shared one: twice the work.

    Args:
        strength: lambda, from 0 (a model trained alone, from the first global one). The default is ours.
    """

    own_model: ClassVar[str] = "rounds"
    strength: float = 0.1

    def __post_init__(self):
        check_strength("ditto", "strength", self.strength)
        if self.private:
            raise StudyError("aggregation ditto: all of a client's own model stays with it; leave private out")

    def local(self) -> "LocalRound":
        from fedbrain.federated.local_proximal import WithOwnModel

        return WithOwnModel(self.strength)
