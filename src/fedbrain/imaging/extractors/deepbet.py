"""Brain masks by deepbet, whose networks are in its package."""

import warnings
from functools import cache

import numpy as np

from fedbrain.imaging.brain_extraction import Extraction, cleaning_facts, of_sane_size
from fedbrain.imaging.reading import Scan, ScanFailure


def deepbet(scan: Scan, mask: Scan | None, *, device: str = "cpu", options=None) -> Extraction:
    """Brain by deepbet's two U-Nets (Fisch et al., Comput. Biol. Med. 2024): largest component, holes filled.

    The networks were trained on healthy adults and are carried by the package; they load once per process. Facts: those of
    ``cleaning_facts``. Raises ScanFailure where no brain is found.
    """
    network = _networks(device)
    try:
        marked = network.run_model(scan.values.copy()) > 0.5  # (X, Y, Z); it works on the array in place
        brain = np.asarray(network.postprocess(marked.copy()), bool)
    except (AssertionError, ValueError):  # its ways to say that the networks marked nothing
        raise ScanFailure("deepbet finds no brain; look at the scan: is it a T1w head, whole and upright?") from None
    return Extraction(of_sane_size(brain, scan, "deepbet finds"), cleaning_facts(marked, brain, scan))


@cache
def _networks(device: str):
    from deepbet.bet import BrainExtraction

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit.load, which is deepbet's to mend
        return BrainExtraction(no_gpu=device != "cuda")
