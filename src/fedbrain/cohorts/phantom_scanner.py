"""The scanners of the phantom study: position, field of view, voxels, contrast, shading, noise and header.

A scanner asks for the head's intensity at the points that its voxels cover, so that nothing is interpolated twice.
All values are ours; they are spread wide enough that cohorts look as unlike as those of real studies do.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from numbers import Real

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter, zoom

from fedbrain.errors import StudyError

HEAD_BOX = ((-94.0, 94.0), (-124.0, 112.0), (None, 110.0))  # mm in the head; the lower end is the scanner's `bottom`


@dataclass(frozen=True)
class Scanner:
    """One scanner with its protocol. Lengths in mm; intensities relative to white matter, which is near 1."""

    voxel: tuple[float, float, float] = (1.4, 1.4, 1.4)  # right-left, posterior-anterior, inferior-superior
    orientation: str = "RAS"  # axis codes of the stored array, as nibabel.aff2axcodes gives them
    oblique: float = 0.0  # degrees; the slices are tipped forward by so much, and the header says so
    bottom: float = -140.0  # lower end of the field of view; -140 shows chin and neck, -90 cuts below the skull base
    gamma: float = 1.0  # intensity ** gamma
    grey_pull: float = 0.0  # added to grey matter; positive brings it nearer to white matter
    fat: float = 1.0  # factor on what is brighter than white matter
    shading: float = 0.1  # deviation of the log bias field
    coil: tuple[float, float, float] = (
        0.0,
        0.0,
        0.0,
    )  # direction and share of the shading that all scans have in common
    blur: float = 0.0  # full width at half maximum within the slice
    noise: float = 0.02  # deviation of the noise in each of the two channels (Rician)
    scale: float = 250.0  # stored value of white matter
    tilt: float = 4.0  # deviation of the patient's head rotation, degrees
    shift: float = 3.0  # deviation of the patient's head position


SCANNERS = {
    "crisp": Scanner(),
    "shaded": Scanner(voxel=(1.5, 1.3, 1.3), orientation="PSR", bottom=-150, gamma=1.2, shading=0.28,
                      coil=(0.15, -0.7, 0.3), noise=0.03, scale=220),
    "grainy": Scanner(voxel=(1.5, 1.5, 1.5), orientation="LAS", bottom=-118, gamma=0.85, grey_pull=0.06, shading=0.14,
                      coil=(0.0, 0.3, 0.6), blur=1.2, noise=0.05, scale=1200),
    "thick": Scanner(voxel=(1.1, 1.1, 3.0), orientation="LPS", oblique=9.0, bottom=-92, gamma=1.1, shading=0.12,
                     coil=(-0.3, 0.0, -0.4), noise=0.025, scale=150),
    "fatsat": Scanner(voxel=(1.2, 1.9, 1.2), orientation="RSP", bottom=-128, gamma=0.95, grey_pull=-0.03, fat=0.45,
                      shading=0.2, coil=(0.4, 0.4, 0.0), noise=0.035, scale=400),
}  # fmt: skip


def find_scanner(choice: str | Mapping, place: str = "scanner") -> Scanner:
    """The scanner by name, or from a mapping of parameters; ``like: name`` in the mapping says what the rest is.

    Raises StudyError for an unknown name, an unknown parameter or a value that cannot be; ``place`` opens the message.
    """
    if isinstance(choice, str):
        if choice not in SCANNERS:
            near = get_close_matches(choice, SCANNERS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise StudyError(f"{place}: unknown scanner {choice!r}; {hint}Known: {', '.join(SCANNERS)}")
        return SCANNERS[choice]
    if not isinstance(choice, Mapping):
        raise StudyError(f"{place}: give a scanner's name or a mapping of its parameters, not {choice!r}")
    base = find_scanner(choice.get("like", "crisp"), f"{place}.like")
    known = {field.name for field in fields(Scanner)}
    for key, value in choice.items():
        if key == "like":
            continue
        if key not in known:
            raise StudyError(f"{place}: unknown parameter {key!r}. Known: like, {', '.join(sorted(known))}")
        default = getattr(base, key)
        if isinstance(default, tuple):
            if not (isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))):
                raise StudyError(f"{place}.{key}: give three numbers, not {value!r}")
            value = tuple(float(part) for part in value)
        elif isinstance(default, str):
            if not isinstance(value, str):
                raise StudyError(f"{place}.{key}: give a text, not {value!r}")
        elif not _is_number(value):
            raise StudyError(f"{place}.{key}: give a number, not {value!r}")
        base = replace(base, **{key: value})
    if not all(0.8 <= size <= 8.0 for size in base.voxel):
        raise StudyError(f"{place}.voxel: sizes must lie between 0.8 and 8 mm, not {list(base.voxel)}")
    if len(base.orientation) != 3 or not all(set(base.orientation) & set(pair) for pair in ("RL", "PA", "IS")):
        raise StudyError(f"{place}.orientation: give three axis codes such as RAS or PSR, not {base.orientation!r}")
    if not -160.0 <= base.bottom <= -60.0:
        raise StudyError(f"{place}.bottom: must lie between -160 and -60 mm, not {base.bottom}")
    if (
        min(base.noise, base.shading, base.blur, base.tilt, base.shift, base.fat) < 0
        or min(base.gamma, base.scale) <= 0
    ):
        raise StudyError(f"{place}: noise, shading, blur, tilt, shift, fat must not be negative; gamma, scale positive")
    return base


def describe(scanner: Scanner) -> dict:
    """The parameters as plain JSON values."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(scanner).items()}


def acquire(
    scanner: Scanner, rng: np.random.Generator, look: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Takes a scan.

    ``look(points)`` gets points (3, N; mm in the head) and returns their intensity and whether they are brain, (N,) each.
    Returns the stored array (int16, axes by ``scanner.orientation``), its affine (mm), and the true brain mask (bool).
    """
    turn, offset = _position(scanner, rng)
    low = np.array([side[0] if side[0] is not None else scanner.bottom for side in HEAD_BOX])
    high = np.array([side[1] for side in HEAD_BOX])
    voxel = np.array(scanner.voxel)
    shape = np.ceil((high - low) / voxel).astype(int)
    tip = _rotation(np.deg2rad(scanner.oblique), 0)
    middle = (low + high) / 2
    affine = np.eye(4)
    affine[:3, :3] = tip @ np.diag(voxel)
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)

    # A thick voxel is the mean of several points along its length.
    splits = np.maximum(1, np.round(voxel / 1.5)).astype(int)
    intensity = np.zeros(shape, np.float32)
    share = np.zeros(shape, np.float32)
    occupied = _occupied(look, affine, shape, turn, offset)
    index = np.stack(np.nonzero(occupied)).astype(np.float32)
    for step in np.ndindex(*splits):
        part = (np.array(step) + 0.5) / splits - 0.5
        points = _points(affine, index + part[:, None].astype(np.float32), turn, offset)
        values, brain = look(points)
        intensity[occupied] += values / np.float32(splits.prod())
        share[occupied] += brain / np.float32(splits.prod())

    image = _contrast(scanner, intensity) * _shading(scanner, rng, tuple(shape))
    if scanner.blur:
        within = np.where(voxel < voxel.max() + 1e-6, scanner.blur / 2.355 / voxel, 0.0)
        image = gaussian_filter(image, within)
    real, imaginary = (scanner.noise * rng.standard_normal(tuple(shape), dtype=np.float32) for _ in range(2))
    image = np.sqrt((image + real) ** 2 + imaginary**2)
    stored = np.clip(np.rint(image * scanner.scale), 0, 32767).astype(np.int16)
    return _stored_as(scanner.orientation, stored, affine, share > 0.5)


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and np.isfinite(value)


def _rotation(angle: float, axis: int) -> np.ndarray:
    a, b = ((1, 2), (0, 2), (0, 1))[axis]
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def _position(scanner: Scanner, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """How the patient lies: rotation (3, 3) and offset (3,) from scanner to head. Nodding varies more than turning."""
    angles = np.deg2rad(scanner.tilt) * rng.standard_normal(3) * (1.0, 0.5, 0.6)
    offset = scanner.shift * rng.standard_normal(3)
    return _rotation(angles[0], 0) @ _rotation(angles[1], 1) @ _rotation(angles[2], 2), offset


def _points(affine, index, turn, offset) -> np.ndarray:
    linear = (turn @ affine[:3, :3]).astype(np.float32)
    return linear @ index + (turn @ affine[:3, 3] + offset).astype(np.float32)[:, None]


def _occupied(look, affine, shape, turn, offset) -> np.ndarray:
    """Voxels near the head; the others are air and are not worth a look."""
    step = np.maximum(1, np.round(6.0 / np.linalg.norm(affine[:3, :3], axis=0))).astype(int)
    axes = [np.arange(0, size + each, each, dtype=np.float32) for size, each in zip(shape, step)]
    index = np.stack([part.ravel() for part in np.meshgrid(*axes, indexing="ij")])
    values, _ = look(_points(affine, index, turn, offset))
    coarse = binary_dilation((values > 0.02).reshape([len(axis) for axis in axes]), np.ones((3, 3, 3)))
    for axis, each in enumerate(step):
        coarse = np.repeat(coarse, each, axis)
    start = step // 2  # a repeated sample stands for the voxels around it
    return coarse[tuple(slice(first, first + size) for first, size in zip(start, shape))]


def _contrast(scanner: Scanner, image: np.ndarray) -> np.ndarray:
    # Fat alone is brighter than white matter; its suppression sets in smoothly from 1.0 on.
    image = image * (1.0 - np.clip((image - 1.0) / 0.12, 0.0, 1.0) * (1.0 - scanner.fat))
    if scanner.grey_pull:
        image = np.maximum(image + scanner.grey_pull * np.exp(-(((image - 0.61) / 0.14) ** 2)), 0.0)
    return image**scanner.gamma if scanner.gamma != 1.0 else image


def _shading(scanner: Scanner, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """The bias field: a part that the coil gives every scan, and a part of this scan; geometric mean 1."""
    coarse = tuple(max(2, size // 6) for size in shape)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in coarse), indexing="ij")
    fixed = sum(share * axis for share, axis in zip(scanner.coil, (x, y, z)))
    own = gaussian_filter(
        rng.standard_normal(coarse, dtype=np.float32), [size * 0.22 for size in coarse], mode="reflect"
    )
    own = (own - own.mean()) / own.std()
    log_field = scanner.shading * (1.4 * fixed + 0.6 * own)
    log_field = zoom(
        log_field, [have / few for have, few in zip(shape, coarse)], order=1, grid_mode=True, mode="nearest"
    )
    return np.exp(log_field)


def _stored_as(codes: str, stored: np.ndarray, affine: np.ndarray, mask: np.ndarray):
    have = nib.orientations.io_orientation(affine)
    change = nib.orientations.ornt_transform(have, nib.orientations.axcodes2ornt(tuple(codes)))
    new_affine = affine @ nib.orientations.inv_ornt_aff(change, stored.shape)
    stored, mask = (np.ascontiguousarray(nib.orientations.apply_orientation(part, change)) for part in (stored, mask))
    return stored, new_affine, mask
