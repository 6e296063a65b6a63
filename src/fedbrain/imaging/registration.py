"""Affine registration of a brain to the MNI152 template's brain, and the one resampling from the scan to the MNI grid.

The template is the skull-stripped ICBM 152 (2009a, nonlinear, symmetric) that nilearn carries. The target grid is
fixed: 128 x 128 x 128 voxels of 1.5 mm, axes RAS, centred on the bounding box of the template's brain at MNI (0, -17,
5) mm:

    x = 1.5 i - 95.25,   y = 1.5 j - 112.25,   z = 1.5 k - 90.25   (mm, from voxel i, j, k)

so the brain (144 x 180 x 154 mm) lies inside with at least 5 mm to spare, and flipping the first axis mirrors left
and right exactly.

ANTs is given all positions in RAS. To it they are just coordinates, the same for both images, and no axis needs to be
flipped.

ANTs climbs to the nearest optimum, which is the right one where the head lies about as its header says. Where the
brain ends up unlike the template, the header is not trusted: 648 starts that cover all rotations are compared on a grid
of 6 mm, and ANTs refines the best of them.
"""

import itertools
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
SCALE = (0.6, 1.6)  # of the brain along any direction, from scanner to template; a sane head's lie within (ours)
STRETCH = 1.6  # the largest of these scales over the smallest (ours)
SIMILARITY_BINS = 32
RIM = 0.05  # of the brain's largest value; interpolated voxels above count as brain
SEARCH_TILTS = (-25.0, 0.0, 25.0)  # degrees about each axis, from each of the 24 ways to lie along the axes (ours)
SEARCH_STRIDE = 4  # voxels of the target grid, 6 mm
SIMILARITY_STRIDE = 2  # 3 mm
REFINED = 3  # starts that ANTs refines


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


@dataclass(frozen=True)
class Alignment:
    """A brain laid on the template."""

    mni_to_scanner: np.ndarray  # (4, 4) float64, mm
    similarity: float  # see ``similarity``
    start: str  # what led to it: "given", or the rotation of the search that ANTs refined
    starts: int  # how many were looked at


def align(
    brain: np.ndarray,
    affine: np.ndarray,
    *,
    resolution: int,
    iterations: list[int],
    seed: int,
    search_below: float,
    start: np.ndarray | None = None,
) -> Alignment:
    """Lays a brain on the template, and looks for other ways to lie where the first result is unlike the template.

    Args:
        brain: (X, Y, Z) float32, zero outside the brain, cropped about it.
        affine: (4, 4) voxel to scanner mm.
        resolution: mm of the grid that is worked on, a whole number.
        iterations: the most iterations at each of three levels, coarse to fine (by 6, 4 and 2 voxels at most).
        search_below: the ``similarity`` under which all rotations are searched; 0 never searches.
        start: (4, 4) MNI mm to scanner mm; not given, the header's axes, centres of mass together.
    Returns:
        The alignment with the highest similarity: a local optimum of mutual information near its start. With one ITK
        thread and one seed it is the same to the last bit.
    Raises:
        ScanFailure: where no start ends in a transform that a head can have.
        MemoryError, RuntimeError, OSError: where memory or the disk for temporary files is at its end.
    """
    coarse = thinned(brain, affine, resolution)
    if not coarse[0].any():
        raise ScanFailure("nothing within the brain mask has a value; look at the scan and its mask")
    found, reasons = [], []

    def refine(start: np.ndarray | None, name: str) -> None:
        try:
            result = _refined(*coarse, start, resolution, iterations, seed)
        except ScanFailure as reason:
            reasons.append(reason)
        else:
            found.append((similarity(*coarse, result), name, result))

    refine(start, "given")
    starts = 1
    if not found or found[0][0] < search_below:
        candidates = _candidates(*coarse, quarter_turns())
        starts += len(candidates)
        for _, name, candidate in candidates[:REFINED]:
            refine(candidate, name)
    if not found:
        raise reasons[0]
    value, name, result = max(found, key=lambda one: one[0])
    return Alignment(result, value, name, starts)


def look_upright(brain: np.ndarray, affine: np.ndarray) -> tuple[float, np.ndarray]:
    """How like the template a brain is that lies along the array's axes, tilts aside: a quick look without ANTs.

    Args:
        brain, affine: as for ``align``.
    Returns:
        The highest similarity of the search's starts along these axes, and that start.
    """
    value, _, start = _candidates(brain, affine, quarter_turns()[:1])[0]
    return value, start


def likely_orientations(head: np.ndarray, affine: np.ndarray) -> list[np.ndarray]:
    """The quarter turns (3, 3), from head to array axes, the likeliest first, by a whole head of which no brain is known.

    A cue, not a finding: by the highest similarity of the search's starts for each, with all of the head for the brain.

    Args:
        head: (X, Y, Z) float32.
        affine: (4, 4) voxel to scanner mm.
    """
    bright = np.minimum(head, np.percentile(head, 99.5)) - head.min()
    turns = {axis_codes(turn): turn for turn in quarter_turns()}
    ranked = dict.fromkeys(name.split()[0] for _, name, _ in _candidates(bright, without_shear(affine), turns.values()))
    return [turns[codes] for codes in ranked]


def similarity(
    brain: np.ndarray, affine: np.ndarray, mni_to_scanner: np.ndarray, *, stride: int = SIMILARITY_STRIDE
) -> float:
    """Normalized mutual information (Studholme 1999) of brain and template over both brains' union, less 1.

    (H(a) + H(b)) / H(a, b) - 1: 0 where they have nothing in common, 1 where one tells the other. Intensities are binned
    in SIMILARITY_BINS up to their 99.5th percentile; zero has a bin of its own.

    Args:
        brain: (X, Y, Z) float32, zero outside the brain, on voxels about as wide as the places are apart.
        affine: (4, 4) voxel to scanner mm.
        stride: voxels of the target grid between the places that are compared.
    """
    template_values, grid = _thinned_template(stride)
    values = resample(brain, np.linalg.inv(affine) @ mni_to_scanner @ grid, template_values.shape)
    union = (template_values > RIM) | (values > RIM * brain.max())
    a, b = _binned(template_values[union]), _binned(values[union])
    counts = np.bincount(a * (SIMILARITY_BINS + 1) + b, minlength=(SIMILARITY_BINS + 1) ** 2)
    joint = counts.reshape(SIMILARITY_BINS + 1, -1) / max(1, a.size)
    together = _entropy(joint)
    return (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / together - 1 if together > 0 else 0.0


def _binned(values: np.ndarray) -> np.ndarray:
    top = np.percentile(values, 99.5) if values.size else 0.0
    if not top > 0:
        return np.zeros(values.shape, int)
    bins = 1 + (values * (SIMILARITY_BINS / top)).astype(int)
    return np.where(values > 0, np.minimum(bins, SIMILARITY_BINS), 0)


def _entropy(share: np.ndarray) -> float:
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


@cache
def _thinned_template(stride: int) -> tuple[np.ndarray, np.ndarray]:
    """The template at every ``stride``-th voxel of the grid, smoothed for that, and its affine to MNI mm."""
    first = (stride - 1) // 2
    smooth = ndimage.gaussian_filter(template().values, 0.5 * np.sqrt(stride**2 - 1), truncate=3)
    scaling = np.diag([stride] * 3 + [1.0])
    scaling[:3, 3] = first
    return smooth[first::stride, first::stride, first::stride], GRID_AFFINE @ scaling


def _candidates(brain: np.ndarray, affine: np.ndarray, turns) -> list[tuple[float, str, np.ndarray]]:
    """Similarity, name and map of every start, the most similar first."""
    coarse = thinned(brain, affine, SEARCH_STRIDE * GRID_VOXEL_SIZE)
    judged = [
        (similarity(*coarse, start, stride=SEARCH_STRIDE), name, start) for name, start in _starts(*coarse, turns)
    ]
    return sorted(judged, key=lambda one: -one[0])


def _starts(brain: np.ndarray, affine: np.ndarray, turns):
    """Pairs of a name and a map from MNI to scanner mm: centres and volumes of the brains agree, the rotation varies."""
    template_values, grid = _thinned_template(SEARCH_STRIDE)
    places, volumes = [], []
    for values, to_mm in ((template_values, grid), (brain, affine)):
        inside = values > RIM * values.max()
        places.append(to_mm[:3, :3] @ np.argwhere(inside).mean(axis=0) + to_mm[:3, 3])
        volumes.append(np.count_nonzero(inside) * abs(np.linalg.det(to_mm[:3, :3])))
    upright = without_shear(affine)[:3, :3]
    axes = upright / np.linalg.norm(upright, axis=0)  # the brain's array axes in scanner space
    for turn in turns:
        for tilt in itertools.product(SEARCH_TILTS, repeat=3):
            start = np.eye(4)
            start[:3, :3] = (volumes[1] / volumes[0]) ** (1 / 3) * axes @ turn @ _rotation(tilt)
            start[:3, 3] = places[1] - start[:3, :3] @ places[0]
            yield f"{axis_codes(turn)} {tilt[0]:+.0f} {tilt[1]:+.0f} {tilt[2]:+.0f}", start


def quarter_turns() -> list[np.ndarray]:
    """The 24 rotations (3, 3) that lay axes on axes; the first changes nothing."""
    turns = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turn = np.eye(3)[list(order)] * signs
            if np.linalg.det(turn) > 0:
                turns.append(turn)
    return turns


def axis_codes(turn: np.ndarray) -> str:
    """Where the three array axes point in the head, for example "RAS" for a matrix (array from head) that is identity."""
    return "".join("RAS"[i] if row[i] > 0 else "LPI"[i] for row in turn for i in [int(np.argmax(np.abs(row)))])


def head_orientation(affine: np.ndarray, mni_to_scanner: np.ndarray) -> np.ndarray:
    """The quarter turn (3, 3), from head to array axes, that is nearest to how the head lies in the array."""
    linear = np.linalg.inv(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)) @ mni_to_scanner[:3, :3]
    left, _, right = np.linalg.svd(linear)
    return max(quarter_turns(), key=lambda turn: np.trace(turn.T @ left @ right))


def _rotation(degrees) -> np.ndarray:
    """About x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _refined(
    brain: np.ndarray,
    affine: np.ndarray,
    start: np.ndarray | None,
    resolution: int,
    iterations: list[int],
    seed: int,
) -> np.ndarray:
    """The affine from MNI mm to scanner mm near ``start``: ANTs, by mutual information, for a brain on the grid that is worked on.

    With one ITK thread and one seed the result is the same to the last bit.

    Raises ScanFailure where ANTs finds no transform, or one that no head has; MemoryError, RuntimeError, OSError where memory
    or the disk for temporary files is at its end.
    """
    import ants

    # ANTs is given the brain where the start puts it. ITK knows no shear: it gets the nearest affine without one, and
    # what that leaves out is put back into the result.
    upright = without_shear(affine if start is None else np.linalg.inv(start) @ affine)
    fixed, moving = _fixed_image(resolution), ants_image(brain, upright)
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
    found = affine @ np.linalg.inv(upright) @ matrix
    scale = 1 / np.linalg.svd(found[:3, :3], compute_uv=False)  # from scanner to template, smallest first
    if scale[0] < SCALE[0] or scale[-1] > SCALE[1] or scale[-1] > STRETCH * scale[0]:
        raise ScanFailure(
            f"to fit the template the brain would have to be scaled by {scale[0]:.2f} to {scale[-1]:.2f} (between "
            f"{SCALE[0]} and {SCALE[1]} is sane); look at the brain mask and at the header's voxel sizes"
        )
    return found


def without_shear(affine: np.ndarray) -> np.ndarray:
    """The nearest affine whose axes are orthogonal; voxel sizes stay."""
    size = np.linalg.norm(affine[:3, :3], axis=0)  # (3,) mm
    left, _, right = np.linalg.svd(affine[:3, :3] / size)
    upright = affine.copy()
    upright[:3, :3] = (left @ right) * size
    return upright


@cache
def _fixed_image(resolution: int):
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=resolution)
    return ants_image(image.get_fdata(dtype=np.float32), image.affine)


def thinned(brain: np.ndarray, affine: np.ndarray, resolution: float) -> tuple[np.ndarray, np.ndarray]:
    """The brain on an isotropic grid along its own axes; axes finer than that are smoothed before they are thinned."""
    size = np.linalg.norm(affine[:3, :3], axis=0)  # (3,) mm
    ratio = resolution / size
    smooth = ndimage.gaussian_filter(brain, 0.5 * np.sqrt(np.maximum(ratio**2 - 1, 0)), mode="constant", truncate=3)
    shape = np.ceil((np.array(brain.shape) - 1) / ratio).astype(int) + 1
    scaling = np.diag([*ratio, 1.0])
    return resample(smooth, scaling, shape), affine @ scaling


def ants_image(values: np.ndarray, affine: np.ndarray):
    """An ITK image at the same positions; the affine's axes must be orthogonal."""
    import ants

    size = np.linalg.norm(affine[:3, :3], axis=0)
    return ants.from_numpy(
        np.ascontiguousarray(values, dtype=np.float32),
        origin=[float(o) for o in affine[:3, 3]],
        spacing=[float(s) for s in size],
        direction=affine[:3, :3] / size,
    )
