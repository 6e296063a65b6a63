"""Membership inference: how well it can be told of a scan whether a model was trained on it.

Two attacks on a released model, by somebody who has a scan and its label:

- loss: a scan whose loss is low is called a member (Yeom et al., IEEE CSF 2018, Adversary 2).
- likelihood ratio (LiRA, online): shadow models are trained with and without the scan, and its logit under the released model
  is compared with what it was under both kinds (Carlini et al., IEEE S&P 2022, Algorithm 1).

Everything here is of the *logit* of a scan, phi = log(p / (1 - p)), p being the model's probability of the scan's own label; for
two classes it is the difference of the model's two outputs, which has no rounding to 0 or 1.
A score is higher for members, and label 1 is a member, so :mod:`fedbrain.evaluation.metrics` and the bootstrap take them as
they are.
"""

import numpy as np

from fedbrain.evaluation.metrics import Metric, weighted

MANY = 64  # shadow models from which on each scan has variances of its own (Carlini et al. 2022)
SMALLEST = 1e-12  # of a variance: shadow models that all agree would divide by zero (ours)


def loss_score(logits) -> np.ndarray:
    """Minus the cross-entropy (natural log) of scans with these logits of their own labels, (N,): -log(1 + exp(-phi))."""
    return -np.logaddexp(0, -np.asarray(logits, dtype=float))


def likelihood_ratio(logits, shadows, inside) -> np.ndarray:
    """The logarithm of LiRA's ratio N(phi; mean_in, var_in) / N(phi; mean_out, var_out) of each scan, (N,).

    logits (N,): under the attacked model. shadows (K, N): under each shadow model, NaN where it says nothing of the scan. inside
    (K, N) of bool: whether the shadow model was trained on the scan.
    Means are each scan's own. So are variances from 64 shadow models on; with fewer, one variance of all scans for "in"
    and one for "out" is estimated within scans (squared deviations from each scan's mean, divided by the number of logits
    less the number of scans). A scan that no shadow model was trained on, or none without, has NaN.
    Raises ValueError where shapes do not fit.
    """
    logits, shadows, inside = np.asarray(logits, float), np.asarray(shadows, float), np.asarray(inside, bool)
    if shadows.shape != inside.shape or shadows.shape[1:] != logits.shape:
        raise ValueError(
            f"logits {logits.shape}, shadows {shadows.shape} and inside {inside.shape} must be (N,), (K, N)"
        )
    known = ~np.isnan(shadows)
    return _log_density(logits, shadows, known & inside) - _log_density(logits, shadows, known & ~inside)


def _log_density(logits, shadows, chosen):
    """Log of the normal density of each logit, fitted to the ``chosen`` (K, N) shadow logits of its scan, but for log(2 pi) / 2."""
    counts = chosen.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(chosen, shadows, 0).sum(axis=0) / counts  # NaN where there is none
        squares = np.where(chosen, (shadows - means) ** 2, 0).sum(axis=0)
        if len(shadows) >= MANY:
            variances = squares / (counts - 1)
        else:
            there = counts > 0
            variances = squares[there].sum() / (counts[there] - 1).sum()
        variances = np.maximum(variances, SMALLEST)  # NaN stays NaN
        return -0.5 * (np.log(variances) + (logits - means) ** 2 / variances)


@weighted
def tpr_at_fpr(members, scores, weights, rate):
    """True-positive rate at a false-positive rate: the share of members found where at most ``rate`` of non-members are called one.

    A scan is called a member from some score on, that score included. The threshold is the lowest one with a share of non-members
    of at most ``rate``; nothing is interpolated or drawn, so with fewer than 1 / rate non-members none may be called (see
    :func:`least_fpr`). 0 where each threshold calls too many. NaN without a member or a non-member.
    Source of the measure: Carlini et al., IEEE S&P 2022, section III.
    """
    order = np.argsort(-scores, kind="stable")
    last = (
        np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True]) if len(order) else np.array([], int)
    )  # of equal scores
    member = (members[order] == 1)[:, None]
    found = np.cumsum(np.where(member, weights[order], 0), axis=0)[last]  # (E, R)
    alarms = np.cumsum(np.where(member, 0, weights[order]), axis=0)[last]
    if not len(last):
        return np.full(weights.shape[1], np.nan)
    allowed = alarms <= rate * alarms[-1] * (1 + 1e-12)  # 1 of 100 is 0.01, whatever the rounding
    shares = np.full(weights.shape[1], np.nan)
    most = np.where(allowed, found, 0).max(axis=0)
    return np.divide(most, found[-1], out=shares, where=(found[-1] > 0) & (alarms[-1] > 0))


def at_rate(rate: float) -> Metric:
    """:func:`tpr_at_fpr` at one rate, as a metric that a bootstrap can take."""
    return lambda members, scores, weights=None: tpr_at_fpr(members, scores, weights, rate=rate)


def least_fpr(nonmembers: int) -> float:
    """The least false-positive rate above 0 that so many non-members can show: one of them."""
    return 1 / nonmembers if nonmembers else np.nan


def attack_curve(members, scores) -> tuple[np.ndarray, np.ndarray]:
    """The attack's ROC curve: (false-positive rates, true-positive rates) at every threshold, from (0, 0) to (1, 1).

    Points, not a curve through them: between two of them the higher threshold is the one that can be used. Empty without a member or a
    non-member.
    """
    members, scores = np.asarray(members) == 1, np.asarray(scores, dtype=float)
    if not members.any() or members.all() or not np.isfinite(scores).all():
        return np.array([]), np.array([])
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    found, alarms = np.cumsum(members[order])[last], np.cumsum(~members[order])[last]
    return np.r_[0, alarms / alarms[-1]], np.r_[0, found / found[-1]]
