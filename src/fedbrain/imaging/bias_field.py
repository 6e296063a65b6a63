"""N4 bias field correction within the brain (Tustison et al., IEEE TMI 2010), as ANTs computes it.

The field is smooth, so it is found on every fourth to sixth voxel and interpolated. We thin the volume before N4 gets
it, instead of by N4's own shrink factor: ANTs spans its splines over the whole volume given and evaluates them at
every voxel, which takes longer than the fit. Over the brain's bounding box a mesh of one element, doubled at each
level, ends near 40 mm with three levels. Voxels are picked, not averaged: averages across tissue borders blur the
histogram that N4 sharpens.
"""

import numpy as np

from fedbrain.imaging.reading import ScanFailure

CONVERGENCE = 1e-7
LARGEST_SHARE_NOT_POSITIVE = 0.05  # of the brain's voxels; a T1w image has next to none


def log_bias_field(
    values: np.ndarray, mask: np.ndarray, voxel_size: np.ndarray, *, spacing: float, iterations: list[int]
) -> np.ndarray:
    """The natural logarithm of the bias field, mean zero over the mask; divide the volume by its exponential.

    Args:
        values: (X, Y, Z) float32, cropped about the brain.
        mask: (X, Y, Z) bool, the brain.
        voxel_size: (3,) mm.
        spacing: mm between the voxels that are fitted; they are picked by the whole step nearest to it.
        iterations: the most iterations at each level; each level halves the distance of the splines' knots.
    Returns:
        (X, Y, Z) float32.
    Raises:
        ScanFailure: where the brain is too small for a fit, or not positive.
    """
    import ants

    if float((values[mask] <= 0).mean()) > LARGEST_SHARE_NOT_POSITIVE:
        raise ScanFailure(
            "many brain voxels are zero or negative, as if the image were normalized already; "
            "give the scanner's own intensities"
        )
    step = np.maximum(1, np.rint(spacing / voxel_size)).astype(int)
    first = step // 2
    thinned = tuple(slice(f, None, s) for f, s in zip(first, step))
    picked = mask[thinned] & (values[thinned] > 0)
    if min(picked.shape) < 4 or np.count_nonzero(picked) < 200:
        raise ScanFailure("the brain found is too small for a bias field; check the scan and its brain mask")
    distance = [float(d) for d in step * voxel_size]
    field = ants.n4_bias_field_correction(
        ants.from_numpy(np.where(picked, values[thinned], 0).astype(np.float32), spacing=distance),
        mask=ants.from_numpy(picked.astype(np.float32), spacing=distance),
        shrink_factor=1,
        convergence={"iters": list(iterations), "tol": CONVERGENCE},
        spline_param=[1, 1, 1],
        return_bias_field=True,
    ).numpy()
    log_field = np.log(field)
    for axis, length in enumerate(values.shape):
        log_field = _interpolate(log_field, axis, (np.arange(length) - first[axis]) / step[axis])
    return log_field - log_field[mask].mean(dtype=np.float64).astype(np.float32)


def _interpolate(values: np.ndarray, axis: int, position: np.ndarray) -> np.ndarray:
    """Linear along one axis at fractional ``position``; constant beyond the ends."""
    position = np.clip(position, 0, values.shape[axis] - 1)
    below = np.minimum(position.astype(int), values.shape[axis] - 2)
    shape = [1] * values.ndim
    shape[axis] = -1
    weight = (position - below).astype(np.float32).reshape(shape)
    return np.take(values, below, axis) * (1 - weight) + np.take(values, below + 1, axis) * weight
