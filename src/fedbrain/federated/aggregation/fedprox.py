"""FedProx: a client is held near the global model while it trains; the server averages as FedAvg does.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020. The formulas are plain arithmetic on mappings from
names to arrays, so that they take torch tensors (then with gradients) as well as numpy arrays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedbrain.federated.aggregation.averages import FedAvg
from fedbrain.federated.aggregation.rule import check_strength

if TYPE_CHECKING:
    from fedbrain.federated.local import LocalRound


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg, and mu / 2 ||w - W||^2 over the shared parameters in every client's loss. With mu 0 it is FedAvg.

    The term's gradient mu (w - W) is added to that of each batch before AdamW's step (the paper leaves the local solver open).

    Args:
        mu: from 0. The default is ours.
    """

    mu: float = 0.01

    def __post_init__(self):
        check_strength("fedprox", "mu", self.mu)

    def local(self) -> "LocalRound":
        from fedbrain.federated.local_proximal import Proximal

        return Proximal(self.mu) if self.mu else super().local()


def proximal_term(tensors: Mapping, anchor: Mapping, mu: float):
    """mu / 2 ||w - W||^2, summed over the names of ``anchor`` (the global model, what travels): add it to a client's loss."""
    return mu / 2 * sum(((tensors[name] - start) ** 2).sum() for name, start in anchor.items())


def proximal_gradient(tensors: Mapping, anchor: Mapping, mu: float) -> dict:
    """mu (w - W) by name: its gradient, to be added to that of the loss before an optimizer's step."""
    return {name: mu * (tensors[name] - start) for name, start in anchor.items()}
