"""Affine registration of a brain to the MNI152 template's brain, and the one resampling from the scan to the MNI grid.

The template is the skull-stripped ICBM 152 (2009a, nonlinear, symmetric) that nilearn carries. The target grid is
fixed: 128 x 128 x 128 voxels of 1.5 mm, axes RAS, centred on the bounding box of the template's brain at MNI (0, -17,
5) mm:

    x = 1.5 i - 95.25,   y = 1.5 j - 112.25,   z = 1.5 k - 90.25   (mm, from voxel i, j, k)

so the brain (144 x 180 x 154 mm) lies inside with at least 5 mm to spare, and flipping the first axis mirrors left
and right exactly.

ANTs is given all positions in RAS. To it they are just coordinates, the same for both images, and no axis needs to be
flipped.
"""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from fedbrain.imaging.faults import is_of_machine
from fedbrain.imaging.reading import ScanFailure

GRID_SHAPE = (128, 128, 128)
GRID_VOXEL_SIZE = 1.5  # mm
GRID_CENTRE = (0.0, -17.0, 5.0)  # MNI mm
GRID_AFFINE = np.diag([GRID_VOXEL_SIZE] * 3 + [1.0])  # (4, 4) voxel to MNI mm
GRID_AFFINE[:3, 3] = [c - GRID_VOXEL_SIZE * (n - 1) / 2 for c, n in zip(GRID_CENTRE, GRID_SHAPE)]
ORDERS = {"linear": 1, "cubic": 3}


@dataclass(frozen=True)
class Template:
    """The template on the target grid."""

    values: np.ndarray  # (128, 128, 128) float32, 0 to 1, zero outside the brain
    mask: np.ndarray  # (128, 128, 128) bool
    grey: np.ndarray  # (128, 128, 128) float32, probability
    white: np.ndarray  # (128, 128, 128) float32, probability


@cache
def template() -> Template:
    """The template and its tissue maps on the target grid; read once per process."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    images = [load(resolution=1) for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)]
    brain, grey, white = (
        resample(image.get_fdata(dtype=np.float32), np.linalg.inv(image.affine) @ GRID_AFFINE) for image in images
    )
    inside = (images[0].get_fdata(dtype=np.float32) > 0).astype(np.float32)
    mask = resample(inside, np.linalg.inv(images[0].affine) @ GRID_AFFINE) >= 0.5
    return Template(np.where(mask, brain, 0), mask, grey, white)


def resample(values: np.ndarray, voxel_map: np.ndarray, shape=GRID_SHAPE, *, order: int = 1) -> np.ndarray:
    """One interpolation onto another grid; zero outside.

    Args:
        values: (X, Y, Z).
        voxel_map: (4, 4), from a voxel of the target grid to a (fractional) voxel of ``values``.
        order: 1 linear, 3 cubic spline.
    Returns:
        ``shape`` float32.
    """
    return ndimage.affine_transform(
        values, voxel_map[:3, :3], voxel_map[:3, 3], output_shape=tuple(shape), output=np.float32, order=order
    )


def register_affine(
    brain: np.ndarray, affine: np.ndarray, *, resolution: int, iterations: list[int], seed: int
) -> np.ndarray:
    """The affine from MNI mm to scanner mm (RAS both) that lays the brain on the template's, by mutual information.

    With one ITK thread and one seed the result is the same to the last bit.

    Args:
        brain: (X, Y, Z) float32, zero outside the brain, cropped about it.
        affine: (4, 4) voxel to scanner mm.
        resolution: mm of the grid that is worked on, a whole number.
        iterations: the most iterations at each of three levels, coarse to fine (by 6, 4 and 2 voxels at most).
    Returns:
        (4, 4) float64.
    Raises:
        ScanFailure: where ANTs finds no transform.
        MemoryError, RuntimeError, OSError: where memory or the disk for temporary files is at its end.
    """
    import ants

    # ITK knows no shear: it gets the nearest affine without one, and the shear is put back into the result.
    size = np.linalg.norm(affine[:3, :3], axis=0)  # (3,) mm
    left, _, right = np.linalg.svd(affine[:3, :3] / size)
    upright = affine.copy()
    upright[:3, :3] = (left @ right) * size
    fixed, moving = _fixed_image(resolution), _coarse_image(brain, upright, resolution)
    ants.config.set_ants_deterministic(True, seed)
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = ants.registration(
                fixed,
                moving,
                type_of_transform="Affine",
                outprefix=str(Path(folder) / "affine_"),
                aff_iterations=tuple(iterations),
                aff_shrink_factors=(4, 2, 1)[-len(iterations) :],
                aff_smoothing_sigmas=(2, 1, 0)[-len(iterations) :],
            )
            found = ants.read_transform(result["fwdtransforms"][0])
        except (RuntimeError, IndexError) as error:
            if is_of_machine(error):
                raise
            (Path(folder) / "room").write_bytes(bytes(1 << 16))  # else ANTs may have failed by a full temporary disk
            raise ScanFailure(
                f"the brain cannot be laid on the template ({error}); look at the scan and its mask"
            ) from None
    linear, shift = np.reshape(found.parameters[:9], (3, 3)), np.asarray(found.parameters[9:])
    centre = np.asarray(found.fixed_parameters)
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre + shift - linear @ centre
    if not np.isfinite(matrix).all() or np.linalg.det(linear) <= 0:
        raise ScanFailure("registration to the template came apart; look at the scan and its brain mask")
    return affine @ np.linalg.inv(upright) @ matrix


@cache
def _fixed_image(resolution: int):
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=resolution)
    return _ants_image(image.get_fdata(dtype=np.float32), image.affine)


def _coarse_image(brain: np.ndarray, affine: np.ndarray, resolution: float):
    """The brain on an isotropic grid along its own axes; axes finer than that are smoothed before they are thinned."""
    size = np.linalg.norm(affine[:3, :3], axis=0)  # (3,) mm
    ratio = resolution / size
    smooth = ndimage.gaussian_filter(brain, 0.5 * np.sqrt(np.maximum(ratio**2 - 1, 0)), mode="constant", truncate=3)
    shape = np.ceil((np.array(brain.shape) - 1) / ratio).astype(int) + 1
    scaling = np.diag([*ratio, 1.0])
    return _ants_image(resample(smooth, scaling, shape), affine @ scaling)


def _ants_image(values: np.ndarray, affine: np.ndarray):
    """An ITK image at the same positions; the affine's axes must be orthogonal."""
    import ants

    size = np.linalg.norm(affine[:3, :3], axis=0)
    return ants.from_numpy(
        np.ascontiguousarray(values, dtype=np.float32),
        origin=[float(o) for o in affine[:3, 3]],
        spacing=[float(s) for s in size],
        direction=affine[:3, :3] / size,
    )
