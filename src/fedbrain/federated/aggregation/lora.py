"""Averaging low-rank adapters: a client's update of a layer is s B_k A_k, and a mean of products is no product of means.

peft names the factors ``...lora_A.{adapter}.weight`` (r, in) and ``...lora_B.{adapter}.weight`` (out, r), and adds
s B A x to the layer's output with s = alpha / r. Ways to average them over clients with weights p_k:

    apart      B = sum p_k B_k, A = sum p_k A_k. Biased: B A is not sum p_k B_k A_k (FedIT: Zhang et al., "Towards Building the
               FederatedGPT", ICASSP 2024).
    product    the best B A of rank r of sum p_k B_k A_k, by a truncated SVD (FlexLoRA: Bai et al., NeurIPS 2024).
    residual   apart, and what is missing is added to the frozen weight (FedEx-LoRA: Singhal et al., ACL 2025).
    stack      the product itself, as a pair of factors of rank sum r_k (FLoRA: Wang et al., NeurIPS 2024).

The rules of the last two are in fedbrain.federated.aggregation.merging, those that train one factor only in lora_parts.

Where the scale is: in one federation all clients have the same scale s (an adapter of lower rank is one of full rank whose
other rows are 0), so s is on both sides and cancels. Else the functions take p_k s_k as weights, and ``truncate`` divides by the s
of the client that is served.

Nothing here ever makes the dense out x in matrix.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.averages import FedAvg
from fedbrain.federated.aggregation.rule import (
    Rule,
    State,
    Tensors,
    Update,
    add_weighted,
    by_scans,
    filled_up,
    in_order,
)

SPLITS = ("b", "sqrt")
NEGLIGIBLE = 1e-12  # of the largest singular value: beyond is rounding, whose directions mean nothing

Factors = tuple[np.ndarray, np.ndarray]  # A (r, in), B (out, r)


@dataclass(frozen=True)
class FedIT(FedAvg):
    """A and B are averaged apart, and everything else, too: FedAvg under the name that says how adapters were treated.

    Raises StudyError where the model has no adapters.
    """

    def init(self, tensors: Tensors, clients: Sequence[str]) -> State:
        required_pairs("fedit", tensors)
        return super().init(tensors, clients)


@dataclass(frozen=True)
class FlexLoRA(Rule):
    """The products B_k A_k are averaged by scans and cut to the rank of the adapters by an SVD; all else as by FedAvg.

    Of all adapters of rank r, B A is then the nearest to sum_k p_k B_k A_k (Eckart and Young). A client's weight is
    p_k = n_k / N, the factor of its product. The clients' next round starts with other factors than any of them had, up to
    rotation. Where the product has less than rank r (at the beginning B is 0), the idle rows of A are those of the mean of
    the clients' A, and B is 0 there, so that they can still be trained (ours).

    Args:
        split: where the singular values go (ours): "b", all into B, so that A has rows of length 1 and B carries the size, as
            LoRA starts; "sqrt", by their roots into both.
        ranks: by client, for those that have an adapter of lower rank than the tuning's. Such a client is served the first
            components, of all adapters of its rank the nearest to the mean, and sends as many back.

    Raises StudyError where the model has no adapters, and for ranks of unknown clients or above the tuning's.
    """

    split: str = "b"
    ranks: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if self.split not in SPLITS:
            raise StudyError(f"aggregation flexlora: split {self.split!r} is unknown; known: {', '.join(SPLITS)}")
        ranks = self.ranks.values() if isinstance(self.ranks, Mapping) else [None]
        if not all(type(rank) is int and rank > 0 for rank in ranks):
            raise StudyError(
                f"aggregation flexlora: ranks must be whole numbers from 1 by client, it is {self.ranks!r}"
            )

    def init(self, tensors: Tensors, clients: Sequence[str]) -> State:
        required_pairs("flexlora", tensors)
        most = min(tensors[a].shape[0] for a in factor_pairs(tensors))
        for client, rank in self.ranks.items():
            if client not in clients:
                raise StudyError(f"aggregation flexlora: ranks: {client} is no client; there are {', '.join(clients)}")
            if rank > most:
                raise StudyError(
                    f"aggregation flexlora: ranks: {client} has {rank}, more than the {most} of the tuning; raise the tuning's"
                )
        return State(0, tensors)

    def down(self, state: State, client: str) -> Tensors:
        if client not in self.ranks:
            return state.tensors
        rank, pairs = self.ranks[client], factor_pairs(state.tensors)
        less = {a: state.tensors[a][:rank] for a in pairs} | {b: state.tensors[b][:, :rank] for b in pairs.values()}
        return dict(state.tensors) | less

    def apply(self, state: State, updates: Sequence[Update]) -> tuple[State, Tensors, dict[str, float]]:
        updates, weights = in_order(updates), by_scans(updates)
        served = [self.down(state, update.client) for update in updates]  # less of the factors where the rank is lower
        by_client = [weights[update.client] for update in updates]
        couples = factor_pairs(state.tensors)
        apart = {*couples, *couples.values()}
        result = add_weighted({n: t for n, t in state.tensors.items() if n not in apart}, updates, weights)
        for a_name, b_name in couples.items():
            # A convolution's factors (r, in, k, k, k) and (out, r, 1, 1, 1) multiply like these.
            a_shape, b_shape = state.tensors[a_name].shape, state.tensors[b_name].shape
            rank = a_shape[0]
            factors = [
                (
                    (filled_up(tensors[a_name], a_shape) + update.delta[a_name]).astype(np.float64).reshape(rank, -1),
                    (filled_up(tensors[b_name], b_shape) + update.delta[b_name]).astype(np.float64).reshape(-1, rank),
                )
                for tensors, update in zip(served, updates)
            ]
            spare = sum(weight * a for weight, (a, _) in zip(by_client, factors))
            singular = compact_svd(*stack(factors, by_client))
            a, b = truncate(*singular, rank, split=self.split, spare=spare)
            result[a_name] = a.reshape(a_shape).astype(state.tensors[a_name].dtype)
            result[b_name] = b.reshape(b_shape).astype(state.tensors[b_name].dtype)
        result = {name: result[name] for name in state.tensors}
        return replace(state, round=state.round + 1, tensors=result), result, weights


def factor_pairs(names: Iterable[str]) -> dict[str, str]:
    """Of all adapters among these tensors the name of A -> the name of B, in the order of the names."""
    names = list(names)
    pairs = {name: name.replace(".lora_A.", ".lora_B.") for name in names if ".lora_A." in name}
    return {a: b for a, b in pairs.items() if b in names}


def stack(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """One pair of factors of rank R = sum r_k with B A = sum_k weights[k] B_k A_k exactly (FLoRA). Ranks may differ.

    Returns A (R, in), the clients' one below the other, and B (out, R), side by side and weighted.
    """
    a = np.concatenate([a for a, _ in factors])
    b = np.concatenate([weight * b for weight, (_, b) in zip(weights, factors, strict=True)], axis=1)
    return a, b


def compact_svd(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The singular value decomposition of B A from its factors A (R, in) and B (out, R), in float64.

    Both factors are reduced by QR and the R x R matrix between them is decomposed: O((in + out) R^2) operations where the dense
    matrix takes O(in out min(in, out)). The largest entry of each left vector is positive, so that the result is one and
    not a choice of the linear algebra library.

    Returns U (out, q), the singular values (q,) descending, and V^T (q, in), with q at most R, in and out.
    """
    left, b_triangle = np.linalg.qr(b.astype(np.float64))  # (out, <=R), (<=R, R)
    right, a_triangle = np.linalg.qr(a.astype(np.float64).T)  # (in, <=R), (<=R, R)
    u, values, vt = np.linalg.svd(b_triangle @ a_triangle.T, full_matrices=False)
    u, vt = left @ u, vt @ right.T
    signs = np.sign(np.take_along_axis(u, np.abs(u).argmax(axis=0)[None], axis=0)[0])
    return u * signs, values, vt * signs[:, None]


def truncate(
    u: np.ndarray,
    values: np.ndarray,
    vt: np.ndarray,
    rank: int,
    *,
    scale: float = 1.0,
    split: str = "b",
    spare: np.ndarray | None = None,
) -> Factors:
    """The factors A (rank, in) and B (out, rank) with ``scale`` B A nearest to U diag(values) V^T.

    ``split`` as of FlexLoRA. Where there are fewer than ``rank`` singular values that count, B is 0 and A has the rows of
    ``spare`` (rank, in) at those places (0 without it: such a component could never be trained again).
    """
    count = int((values[:rank] > NEGLIGIBLE * values[0]).sum()) if len(values) else 0
    a = np.zeros((rank, vt.shape[1])) if spare is None else np.array(spare, dtype=np.float64)
    b = np.zeros((len(u), rank))
    root = np.sqrt(values[:count] / scale) if split == "sqrt" else np.ones(count)
    a[:count] = root[:, None] * vt[:count]
    b[:, :count] = u[:, :count] * (values[:count] / scale / root)
    return a, b


def residual(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """What averaging apart leaves out: R = sum p_k B_k A_k - (sum p_k B_k)(sum p_k A_k), as factors (FedEx-LoRA).

    s R is what every client must add to its frozen weight, so that W0 + s R + s B A is the mean of its clients' models. The
    weights must sum to 1, the ranks be equal. By the identity R = sum_{k<K} p_k (B_k - mean B)(A_k - A_K) its rank is at
    most (K - 1) r; one client alone leaves nothing.

    Returns A ((K - 1) r, in) and B (out, (K - 1) r).
    """
    mean = sum(weight * b for weight, (_, b) in zip(weights, factors, strict=True))
    last = factors[-1][0]
    apart = [(a - last, b - mean) for a, b in factors[:-1]]
    if not apart:
        return np.zeros((0, last.shape[1])), np.zeros((len(mean), 0))
    return stack(apart, weights[:-1])


def required_pairs(rule: str, tensors: Mapping) -> None:
    """Raises StudyError where no adapter has both factors among the tensors that travel."""
    if not factor_pairs(tensors):
        raise StudyError(
            f"aggregation {rule}: the model has no LoRA factors A and B that both travel; use it with tuning lora, or fedavg"
        )
