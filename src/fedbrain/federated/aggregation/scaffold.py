"""SCAFFOLD's control variates: what a client's gradients drift by is estimated and taken out of its steps.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, algorithm 1 with option II for
the client's control. It is stated for SGD: (x - y) / (steps lr) is the mean gradient of a client's steps only there. Plain
arithmetic on mappings from names to arrays, torch tensors as well as numpy arrays. Controls start at 0.
"""

from collections.abc import Mapping, Sequence


def corrected_gradient(gradient: Mapping, own: Mapping, server: Mapping) -> dict:
    """g - c_k + c by name: the direction of a client's step."""
    return {name: value - own[name] + server[name] for name, value in gradient.items()}


def own_control(own: Mapping, server: Mapping, before: Mapping, after: Mapping, steps: int, rate: float) -> dict:
    """A client's control after its round: c_k - c + (x - y) / (steps rate).

    ``before`` is x, the model that it received, ``after`` y, what ``steps`` steps of SGD with learning rate ``rate`` made of it.
    """
    return {name: own[name] - server[name] + (before[name] - after[name]) / (steps * rate) for name in before}


def server_control(server: Mapping, changes: Sequence[Mapping], clients: int) -> dict:
    """The server's control after a round: c + |S| / N mean_{k in S} (c_k,new - c_k) = c + sum_k change_k / N.

    ``changes`` are those of the clients of the round, in the order of their names; ``clients`` is N, how many there are in all.
    """
    return {name: value + sum(change[name] for change in changes) / clients for name, value in server.items()}
