"""Rules whose exact average of adapters needs more rank than an adapter has, so that the server changes the frozen weights, too.

    FedEx-LoRA    A' = sum p_k A_k, B' = sum p_k B_k; the frozen weight gets s (sum p_k B_k A_k - B' A')
                  (Singhal et al., ACL 2025).
    FLoRA         the frozen weight gets s sum p_k B_k A_k; the clients start with new adapters (Wang et al., NeurIPS 2024).

What is added travels as a pair of factors of rank (K - 1) r and K r; clients add it to their own copy of the weight. One that missed
a round gets the whole weight. All else is averaged as by FedAvg, an adapter of which the clients keep a factor included. No dense matrix is made beside the weights themselves.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedbrain.federated.aggregation.lora import Factors, required_pairs, residual, stack
from fedbrain.federated.aggregation.rule import (
    AdaptedLayer,
    Rule,
    State,
    Tensors,
    Update,
    add_weighted,
    by_scans,
    in_order,
    merge,
)
from fedbrain.federated.kinds import named


@dataclass(frozen=True)
class MergingRule(Rule):
    """Base of both: the round but for what becomes of the factors. ``layers`` are those whose A and B both travel."""

    requires: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B")
    layers: ClassVar[Mapping[str, AdaptedLayer]] = {}  # of the model that the rule is fitted to

    @property
    def merged(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer.weight for layer in self.layers.values()))

    def fitted(self, layers: Mapping[str, AdaptedLayer]) -> Rule:
        rule = copy.copy(self)
        whole = {a: layer for a, layer in layers.items() if not named(self.private, (a, layer.b))}
        object.__setattr__(rule, "layers", whole)
        return rule

    def init(self, tensors: Tensors, clients: Sequence[str]) -> State:
        if self.requires:
            required_pairs(type(self).__name__, tensors)
        drawn = hashlib.sha256(b"".join(np.ascontiguousarray(tensors[a]).tobytes() for a in self.layers))
        return State(0, tensors, memory={"seed": int.from_bytes(drawn.digest()[:6], "big")})

    def factors(self, state: State) -> Tensors:
        return dict(state.moments)

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        updates = in_order(updates)
        weights, memory = self._weigh(state, updates)
        shares = [weights[update.client] for update in updates]
        apart = {*self.merged, *self.layers, *(layer.b for layer in self.layers.values())}
        result = add_weighted({n: t for n, t in state.tensors.items() if n not in apart}, updates, weights)
        moments = {}
        for a_name, layer in self.layers.items():
            start = state.tensors[a_name], state.tensors[layer.b]
            pairs = [(start[0] + u.delta[a_name], start[1] + u.delta[layer.b]) for u in updates]
            added, (a, b) = self._divide(pairs, shares, a_name, state)
            # As they travel: server and clients must add the same numbers.
            factors = added[0].astype(start[0].dtype), (layer.scale * added[1]).astype(start[1].dtype)
            moments |= dict(zip((a_name, layer.b), factors))
            result[a_name], result[layer.b] = a.astype(start[0].dtype), b.astype(start[1].dtype)
            whole = result.get(layer.weight, state.tensors[layer.weight])
            result[layer.weight] = merge(whole, layer.rows, *factors)
        result = {name: result[name] for name in state.tensors}
        return State(state.round + 1, result, memory, moments), result, weights

    def _weigh(self, state: State, updates: Sequence[Update]) -> tuple[dict[str, float], Mapping]:
        """The weight of each client's update, and what the rule remembers after the round."""
        return by_scans(updates), state.memory

    def _divide(self, pairs: Sequence[Factors], shares: Sequence[float], name: str, state: State):
        """(what the frozen weight gets, without the scale; the adapter of the next round), both as factors."""
        raise NotImplementedError


@dataclass(frozen=True)
class FedExLoRA(MergingRule):
    """Adapters are averaged apart, and what that leaves out is added to the frozen weight: exact (Singhal et al., ACL 2025)."""

    def _divide(self, pairs: Sequence[Factors], shares: Sequence[float], name: str, state: State):
        a, b = (sum(share * part for share, part in zip(shares, parts)) for parts in zip(*pairs))
        return residual(pairs, shares), (a, b)


@dataclass(frozen=True)
class FLoRA(MergingRule):
    """The sum of the clients' products is added to the frozen weight, and everybody starts with a new adapter (Wang et al.,
    NeurIPS 2024).

    New A are drawn as peft draws them, uniform within 1 / sqrt(in), from a generator seeded by the run's first A, the name and the
    round; B is 0. So after a round the model is the merged one alone.
    """

    def _divide(self, pairs: Sequence[Factors], shares: Sequence[float], name: str, state: State):
        a, b = state.tensors[name], pairs[0][1]
        place = list(self.layers).index(name)
        generator = np.random.default_rng([state.memory["seed"], state.round, place])
        fresh = generator.uniform(-1, 1, size=a.shape) / np.sqrt(a.shape[1])
        return stack(pairs, shares), (fresh, np.zeros_like(b))
