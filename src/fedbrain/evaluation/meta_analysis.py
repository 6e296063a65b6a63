"""The mean of a performance over cohorts that differ from each other: random effects, few cohorts.

Cohort i has the estimate y_i with the variance v_i of its subjects; the true values scatter about their mean with variance
tau^2, by restricted maximum likelihood (Viechtbauer, Journal of Educational and Behavioral Statistics 30:261-293, 2005). The
interval of the mean is that of Hartung and Knapp (Statistics in Medicine 20:3875-3889, 2001), with Student's t of k - 1 degrees of
freedom; where cohorts happen to agree better than their subjects allow, their factor would make it too narrow and is taken as 1
(Röver, Knapp and Friede, BMC Medical Research Methodology 15:99, 2015). The prediction interval is for one more cohort (Higgins, Thompson and
Spiegelhalter, Journal of the Royal Statistical Society A 172:137-159, 2009), t of k - 2. Recommended for prediction models: Debray et
al., BMJ 356:i6460 (2017).
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit


class RandomEffects(NamedTuple):
    """Mean, its interval and two-sided p against 0, the prediction interval and tau; NaN where so few cohorts give none."""

    value: float
    low: float
    high: float
    p: float
    prediction_low: float
    prediction_high: float
    tau: float


def random_effects(estimates, variances, *, level: float = 0.95, modified: bool = True) -> RandomEffects:
    """Random-effects mean of k estimates (k,) with their variances (k,), which must be positive.

    modified: whether the factor of Hartung and Knapp is at least 1 (see the module). One cohort has no interval, two have no
    prediction interval.
    Raises ValueError without an estimate, and for values that are not finite or variances that are not positive.
    """
    y, v = np.asarray(estimates, dtype=float), np.asarray(variances, dtype=float)
    if y.ndim != 1 or y.shape != v.shape or not len(y):
        raise ValueError(f"estimates {y.shape} and variances {v.shape} must be two vectors of one length, 1 or more")
    if not (np.isfinite(y).all() and np.isfinite(v).all() and (v > 0).all()):
        raise ValueError("estimates must be finite, variances finite and positive")
    k = len(y)
    if k == 1:
        return RandomEffects(float(y[0]), *[np.nan] * 6)
    tau_squared = between_variance(y, v)
    weights = 1 / (v + tau_squared)
    mean = float(weights @ y / weights.sum())
    factor = float(weights @ (y - mean) ** 2 / (k - 1))
    se = np.sqrt(max(factor, 1.0) / weights.sum() if modified else factor / weights.sum())
    half = stdtrit(k - 1, (1 + level) / 2) * se
    p = 2 * stdtr(k - 1, -abs(mean) / se) if se > 0 else np.nan
    reach = stdtrit(k - 2, (1 + level) / 2) * np.sqrt(tau_squared + se**2) if k > 2 else np.nan
    limits = (mean - half, mean + half, p, mean - reach, mean + reach, np.sqrt(tau_squared))
    return RandomEffects(mean, *map(float, limits))


def between_variance(y: np.ndarray, v: np.ndarray) -> float:
    """tau^2 by restricted maximum likelihood: the zero of the likelihood's slope, or 0 where it falls from there on."""

    def slope(tau_squared):
        weights = 1 / (v + tau_squared)
        total = weights.sum()
        mean = weights @ y / total
        return weights**2 @ (y - mean) ** 2 - total + (weights**2).sum() / total

    if slope(0.0) <= 0:
        return 0.0
    above = float(((y - y.mean()) ** 2).sum() + v.max())
    while slope(above) > 0:
        above *= 2
    return float(brentq(slope, 0.0, above, xtol=1e-14, rtol=1e-12))
