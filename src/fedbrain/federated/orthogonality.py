"""How much two adapters beside one layer have in common: 0 where they are orthogonal, at most 1.

With the pairs A_g (r, in), B_g (out, r) and A_l (q, in), B_l (out, q):

    weights_a         ||A_g A_l^T||^2 / (||A_g||^2 ||A_l||^2)
    weights_b         ||B_g^T B_l||^2 / (||B_g||^2 ||B_l||^2)
    update            cos^2 of B_g A_g and B_l A_l as vectors, <B_g A_g, B_l A_l> = sum((B_l^T B_g) * (A_l A_g^T))
    representation    mean over tokens x of cos^2 of B_g A_g x and B_l A_l x

Norms are Frobenius norms. No matrix of the layer's size is made. Where a factor is 0, as B is at the start, it is 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SMALL = 1e-20  # keeps 0 / 0 at 0


class Orthogonality:
    """The penalty on a model with layers that have two adapters, "default" and "local".

    Used as a context while the model trains, since "representation" looks at what enters the layers. Raises ValueError where
    there are no such layers.
    """

    def __init__(self, model: nn.Module, kind: str):
        self._kind = kind
        self._layers = [m for m in model.modules() if {"default", "local"} <= set(getattr(m, "lora_A", ()))]
        self._inputs: dict[int, Tensor] = {}
        if not self._layers:
            raise ValueError("the model has no layers with two adapters")

    @contextmanager
    def watched(self) -> Iterator["Orthogonality"]:
        """While it lasts, the layers' inputs are seen."""
        hooks = []
        if self._kind == "representation":
            hooks = [layer.register_forward_pre_hook(self._see) for layer in self._layers]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            self._inputs.clear()

    def __call__(self) -> Tensor:
        """The mean over the layers, of the last forward pass."""
        return torch.stack([self._of(layer) for layer in self._layers]).mean()

    def _see(self, layer: nn.Module, arguments: tuple) -> None:
        self._inputs[id(layer)] = arguments[0]

    def _of(self, layer: nn.Module) -> Tensor:
        pairs = [(layer.lora_A[name].weight, layer.lora_B[name].weight) for name in ("default", "local")]
        if self._kind == "representation":
            return overlap_of_outputs(*pairs, self._inputs[id(layer)])
        return {"weights_a": overlap_of_a, "weights_b": overlap_of_b, "update": overlap_of_updates}[self._kind](*pairs)


def overlap_of_a(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Of the rows of two A."""
    a, c = one[0], other[0]
    return (a @ c.T).square().sum() / (a.square().sum() * c.square().sum() + SMALL)


def overlap_of_b(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Of the columns of two B."""
    b, d = one[1], other[1]
    return (b.T @ d).square().sum() / (b.square().sum() * d.square().sum() + SMALL)


def overlap_of_updates(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """cos^2 of two products B A."""

    def inner(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> Tensor:
        return ((q[1].T @ p[1]) * (q[0] @ p[0].T)).sum()

    return inner(one, other).square() / (inner(one, one) * inner(other, other) + SMALL)


def overlap_of_outputs(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """Mean of cos^2 between what two adapters add to the tokens ``x`` (..., in)."""
    u, v = (x.to(a.dtype) @ a.T @ b.T for a, b in (one, other))  # (..., out); under autocast x may come in bfloat16
    squares = (u * v).sum(-1).square() / (u.square().sum(-1) * v.square().sum(-1) + SMALL)
    return squares.mean()
