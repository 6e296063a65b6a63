"""Adagrad on the server: the steps along a weight grow smaller with all that it has moved."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedbrain.federated.aggregation.optimizers import FedAdam


@dataclass(frozen=True)
class FedAdagrad(FedAdam):
    """m <- b1 m + (1 - b1) D, v <- v + D^2, W <- W + eta m / (sqrt(v) + tau) (Reddi et al., ICLR 2021, algorithm 2).

    Options as of FedAdam, without beta2 and bias correction; ``beta1`` is 0, as in the paper's experiments.
    """

    beta1: float = 0.0
    beta2: ClassVar[float] = 0.0  # the sum forgets nothing
    bias_correction: ClassVar[bool] = False

    def _second(self, past: np.ndarray, square: np.ndarray) -> np.ndarray:
        return past + square
