"""Brain masks: found by deepbet, or provided by the user.

An extractor takes ``scan`` (Scan), ``mask`` (the scan's mask from the manifest as a Scan, or None) and ``device``,
and returns the brain as (X, Y, Z) bool on the scan's own grid. A further one is one function and one line in the
registry.
"""

import warnings
from functools import cache

import numpy as np

from fedbrain.imaging.reading import Scan, ScanFailure

SMALLEST_BRAIN_ML = 100  # less is no brain; smaller doubts are left to quality control


def deepbet(scan: Scan, mask: Scan | None, *, device: str = "cpu") -> np.ndarray:
    """Brain by deepbet's two U-Nets (Fisch et al., Comput. Biol. Med. 2024): largest component, holes filled.

    The networks were trained on healthy adults and are carried by the package; they load once per process.
    Raises ScanFailure where no brain is found.
    """
    network = _deepbet(device)
    try:
        probability = network.run_model(scan.values.copy())  # (X, Y, Z); it works on the array in place
        brain = network.postprocess(probability > 0.5)
    except (AssertionError, ValueError):  # its ways to say that the networks marked nothing
        raise ScanFailure("deepbet finds no brain; look at the scan: is it a T1w head, whole and upright?") from None
    return _of_sane_size(brain.astype(bool), scan, "deepbet finds")


def provided(scan: Scan, mask: Scan | None, *, device: str = "cpu") -> np.ndarray:
    """The manifest's own mask: voxels above half of its largest value. Raises ScanFailure where it does not fit."""
    if mask is None:
        raise ScanFailure("the extractor is 'provided', but this scan names no mask; fill its column mask")
    if mask.values.shape != scan.values.shape or not np.allclose(mask.affine, scan.affine, atol=0.05):
        raise ScanFailure(
            f"the mask's grid {mask.values.shape} is not the scan's {scan.values.shape}, or lies elsewhere in space; "
            "resample the mask to the scan with nearest neighbour"
        )
    return _of_sane_size(mask.values > 0.5 * mask.values.max(), scan, "the mask holds")


@cache
def _deepbet(device: str):
    from deepbet.bet import BrainExtraction

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit.load, which is deepbet's to mend
        return BrainExtraction(no_gpu=device != "cuda")


def _of_sane_size(brain: np.ndarray, scan: Scan, who: str) -> np.ndarray:
    millilitres = np.count_nonzero(brain) * abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    if millilitres < SMALLEST_BRAIN_ML:
        raise ScanFailure(
            f"{who} a brain of {millilitres:.0f} ml only; look at the scan: is it a T1w head, whole and upright?"
        )
    return brain
