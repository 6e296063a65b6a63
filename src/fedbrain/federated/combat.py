"""ComBat over clients that pool nothing but sums: location and scale of each feature at each client, and how to undo them.

The model of Johnson, Li and Rabinovic (Biostatistics 8:118-127, 2007), for images Fortin et al. (NeuroImage 161:149-170, 2017):
feature g of subject j at client i, with covariates x that are to be kept, is

    y_ijg = a_g + x_ij' b_g + s_g (c_ig + d_ig e_ijg),    e of variance 1.

a, b and the pooled variance s^2 are least squares with an intercept for each client; the client's location c and scale d are
shrunk towards what its other features show (empirical Bayes, parametric). A feature is harmonized to

    y* = (y - a - x'b - s c) / d + a + x'b.

All that the pooled fit needs of a client are sums over its subjects, so nobody's feature has to travel, and the result is
that of pooled data (distributed ComBat: Chen et al., NeuroImage 248:118822, 2022). Theirs takes two exchanges, b first and then the residuals;
ours takes one: sums that are centred within the client give b without the intercepts (Frisch and Waugh,
Econometrica 1:387-401, 1933) and the residuals' squares with it. Location and scale are computed by the client itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 3  # subjects of a client: from two, a variance has one degree of freedom (ours)
CONSTANT = 1e-7  # a feature that varies by less than this share of its pooled mean is taken for constant (ours)


@dataclass(frozen=True)
class SiteSums:
    """All that a client sends: of n subjects with G features and P covariates."""

    count: int  # n
    feature_mean: np.ndarray  # (G,)
    covariate_mean: np.ndarray  # (P,)
    feature_squares: np.ndarray  # (G,): sum over subjects of (y - mean)^2
    covariate_products: np.ndarray  # (P, P): of (x - mean)(x - mean)'
    cross_products: np.ndarray  # (P, G): of (x - mean)(y - mean)'

    @property
    def numbers(self) -> int:
        """How many numbers that is; of a symmetric matrix one half and the diagonal."""
        covariates = len(self.covariate_mean)
        arrays = (self.feature_mean, self.covariate_mean, self.feature_squares, self.cross_products)
        return 1 + sum(array.size for array in arrays) + covariates * (covariates + 1) // 2

    def residual_squares(self, slopes: np.ndarray) -> np.ndarray:
        """(G,): sum over subjects of the squared residual, with the client's own intercept and slopes (P, G).

        Linear in the client's sums, so that the total over clients is that of their totals; rounding may leave less than 0.
        """
        explained = 2 * (slopes * self.cross_products).sum(0) - (slopes * (self.covariate_products @ slopes)).sum(0)
        return self.feature_squares - explained


@dataclass(frozen=True)
class Pooled:
    """What every client gets back."""

    mean: np.ndarray  # (G,): a, at covariates 0
    slopes: np.ndarray  # (P, G): b
    variance: np.ndarray  # (G,): s^2, 0 where the feature is constant

    @property
    def numbers(self) -> int:
        """How many numbers that is."""
        return self.mean.size + self.slopes.size + self.variance.size


@dataclass(frozen=True)
class Adjustment:
    """A client's location and scale, in units of the pooled deviation: c and d; 0 and 1 where the feature is constant."""

    location: np.ndarray  # (G,)
    scale: np.ndarray  # (G,)
    iterations: int


def site_sums(features: np.ndarray, covariates: np.ndarray) -> SiteSums:
    """The sums of one client: features (n, G), covariates (n, P), P may be 0; a row a subject.

    Raises ValueError with fewer than three subjects, or values that are not finite.
    """
    y, x = np.asarray(features, dtype=np.float64), np.asarray(covariates, dtype=np.float64)
    if len(y) < FEWEST or len(x) != len(y):
        raise ValueError(f"{len(y)} subjects (with {len(x)} rows of covariates): {FEWEST} or more are needed")
    if not (np.isfinite(y).all() and np.isfinite(x).all()):
        raise ValueError("features and covariates must be finite")
    y_mean, x_mean = y.mean(0), x.mean(0)
    y, x = y - y_mean, x - x_mean
    return SiteSums(len(y), y_mean, x_mean, (y**2).sum(0), x.T @ x, x.T @ y)


def pooled_estimates(sums: Sequence[SiteSums]) -> Pooled:
    """Least squares over all clients' subjects, from their sums; the variance is the mean squared residual (divided by N).

    Only totals over the clients enter (of n, n times the means, squares and products), so these could travel under secure
    aggregation.
    Raises ValueError where a covariate does not vary within any client, or is a combination of the others.
    """
    total = sum(own.count for own in sums)
    products = sum(own.covariate_products for own in sums)  # (P, P)
    spread = np.sqrt(np.diag(products))
    if (spread == 0).any() or np.linalg.matrix_rank(products / np.outer(spread, spread), tol=1e-8) < len(spread):
        raise ValueError("the covariates do not vary within the clients, or one follows from the others")
    slopes = np.linalg.solve(products, sum(own.cross_products for own in sums))  # (P, G)
    feature_mean = sum(own.count * own.feature_mean for own in sums) / total
    covariate_mean = sum(own.count * own.covariate_mean for own in sums) / total
    variance = np.maximum(sum(own.residual_squares(slopes) for own in sums) / total, 0.0)
    constant = np.sqrt(variance) <= CONSTANT * np.abs(feature_mean)
    return Pooled(feature_mean - covariate_mean @ slopes, slopes, np.where(constant, 0.0, variance))


def adjustment(own: SiteSums, pooled: Pooled, *, tolerance: float = 1e-10, most: int = 10_000) -> Adjustment:
    """The client's location and scale, by itself: its moments, shrunk by the paper's posterior means.

    The prior of c is normal, that of d^2 inverse gamma, their moments those of the client's features. The two
    conditional means are iterated until no value moves by more than ``tolerance`` of itself. A hospital that had no part in
    the fit is adjusted in the same way, from its own sums.
    Raises ValueError with fewer than two features that vary, and where the iteration does not end.
    """
    varies = pooled.variance > 0
    if varies.sum() < 2:
        raise ValueError("fewer than two features vary: nothing to shrink towards")
    deviation = np.sqrt(pooled.variance[varies])
    n = own.count
    expected = pooled.mean + own.covariate_mean @ pooled.slopes
    mean = (own.feature_mean - expected)[varies] / deviation
    squares = np.maximum(own.residual_squares(pooled.slopes), 0.0)[varies] / deviation**2  # about the client's mean
    variance = squares / (n - 1)

    prior_mean, prior_variance = mean.mean(), mean.var(ddof=1)
    m, v = variance.mean(), variance.var(ddof=1)
    if m == 0 or v == 0:
        raise ValueError("the client's features have no variance, or all the same one: no prior can be told")
    shape, rate = 2 + m**2 / v, m + m**3 / v
    location, scale_squared = mean, np.where(variance > 0, variance, m)
    for iteration in range(1, most + 1):
        weight = n * prior_variance
        new_location = (weight * mean + scale_squared * prior_mean) / (weight + scale_squared)
        new_scale = (rate + (squares + n * (mean - new_location) ** 2) / 2) / (n / 2 + shape - 1)
        moved = max(
            np.max(np.abs(new_location - location) / np.maximum(np.abs(location), 1e-3)),
            np.max(np.abs(new_scale - scale_squared) / scale_squared),
        )
        location, scale_squared = new_location, new_scale
        if moved <= tolerance:
            c, d = np.zeros(len(varies)), np.ones(len(varies))
            c[varies], d[varies] = location, np.sqrt(scale_squared)
            return Adjustment(c, d, iteration)
    raise ValueError(f"location and scale did not settle in {most} steps")


def affine(pooled: Pooled, own: Adjustment, covariates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain (G,) and shifts (N, G) with which y* = gain y + shift, for N subjects with covariates (N, P)."""
    expected = pooled.mean + np.asarray(covariates, dtype=np.float64) @ pooled.slopes  # (N, G)
    gain = 1 / own.scale
    return gain, (1 - gain) * expected - gain * np.sqrt(pooled.variance) * own.location
