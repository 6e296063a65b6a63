"""Brain masks that the user brings."""

import numpy as np

from fedbrain.imaging.brain_extraction import Extraction, of_sane_size
from fedbrain.imaging.reading import Scan, ScanFailure


def provided(scan: Scan, mask: Scan | None, *, device: str = "cpu", options=None) -> Extraction:
    """The manifest's own mask: voxels above half of its largest value. Raises ScanFailure where it does not fit."""
    if mask is None:
        raise ScanFailure("the extractor is 'provided', but this scan names no mask; fill its column mask")
    if mask.values.shape != scan.values.shape or not np.allclose(mask.affine, scan.affine, atol=0.05):
        raise ScanFailure(
            f"the mask's grid {mask.values.shape} is not the scan's {scan.values.shape}, or lies elsewhere in space; "
            "resample the mask to the scan with nearest neighbour"
        )
    return Extraction(of_sane_size(mask.values > 0.5 * mask.values.max(), scan, "the mask holds"), {})
