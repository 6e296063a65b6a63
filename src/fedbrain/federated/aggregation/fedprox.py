"""FedProx: a client is held near the global model while it trains; the server averages as FedAvg does.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020. Plain arithmetic on mappings from names to arrays, so
that it takes torch tensors (then with gradients) as well as numpy arrays.
"""

from collections.abc import Mapping


def proximal_term(tensors: Mapping, anchor: Mapping, mu: float):
    """mu / 2 ||w - W||^2, summed over the names of ``anchor`` (the global model, what travels): add it to a client's loss."""
    return mu / 2 * sum(((tensors[name] - start) ** 2).sum() for name, start in anchor.items())


def proximal_gradient(tensors: Mapping, anchor: Mapping, mu: float) -> dict:
    """mu (w - W) by name: its gradient, to be added to that of the loss before an optimizer's step."""
    return {name: mu * (tensors[name] - start) for name, start in anchor.items()}
