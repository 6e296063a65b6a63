"""One small picture of a scan, for the eye: is the mask right, does the brain lie on the template?

    upper row   the scan as it came, with the outline of its brain mask: brain that is cut away or skull that is left
    lower row   the bias-corrected brain on the MNI grid with the outline of the template's brain: where it does not lie right

Three axial, two coronal and two sagittal slices each. The scan's left is at the left. What lies outside the scan's field of
view is hatched. Drawing decides nothing about a volume, so this module is not part of what a volume is known by.
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

TILE = 136  # pixels, square
PLANES = ((2, (0.3, 0.5, 0.7)), (1, (0.35, 0.62)), (0, (0.3, 0.5)))  # axis, and places along the brain's extent
MARGIN = 14.0  # mm of the head about the brain
MASK_COLOUR, TEMPLATE_COLOUR = (255, 176, 0), (64, 200, 255)
QUALITY = 55  # of WebP: about 30 kB


def snapshot(
    scan: np.ndarray, voxel_size: np.ndarray, brain: np.ndarray, volume: np.ndarray, template_mask: np.ndarray
) -> bytes:
    """The picture as WebP, 952 x 272 pixels.

    Args:
        scan: (X, Y, Z) the head as it came, axes RAS.
        voxel_size: (3,) mm.
        brain: (X, Y, Z) bool, the brain mask.
        volume: (128, 128, 128) the masked, bias-corrected brain on the MNI grid.
        template_mask: (128, 128, 128) bool.
    """
    low, high = _extent(brain)
    margin = np.round(MARGIN / voxel_size).astype(int)
    top = max(1.2 * float(np.percentile(scan[brain][::5], 99)), 1e-6)
    native = []
    for axis, places in PLANES:
        for place in places:
            index = int(low[axis] + place * (high[axis] - 1 - low[axis]))
            window = [slice(a, b) for i, (a, b) in enumerate(zip(low - margin, high + margin)) if i != axis]
            spacing = np.delete(voxel_size, axis)
            grey, covered = _cut(np.take(scan, index, axis), window)
            outline, _ = _cut(np.take(brain, index, axis), window)
            native.append(_tile(grey / top, spacing, outline, MASK_COLOUR, covered))
    low, high = _extent(template_mask)
    top = float(np.percentile(volume[::2, ::2, ::2][template_mask[::2, ::2, ::2]], 99.5))
    aligned = []
    for axis, places in PLANES:
        for place in places:
            index = int(low[axis] + place * (high[axis] - 1 - low[axis]))
            grey, outline = np.take(volume, index, axis), np.take(template_mask, index, axis)
            aligned.append(_tile(grey / max(top, 1e-6), np.ones(2), outline, TEMPLATE_COLOUR))
    stream = io.BytesIO()
    picture = np.concatenate([np.concatenate(row, axis=1) for row in (native, aligned)])  # (272, 952, 3)
    Image.fromarray(picture).save(stream, "WEBP", quality=QUALITY, method=4)
    return stream.getvalue()


def _extent(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last filled index along each axis."""
    filled = [np.flatnonzero(mask.any(axis=tuple(o for o in range(3) if o != axis))) for axis in range(3)]
    return np.array([f[0] for f in filled]), np.array([f[-1] + 1 for f in filled])


def _cut(plane: np.ndarray, window: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """The window of a plane, zero where it reaches beyond, and where the plane really is."""
    shape = [side.stop - side.start for side in window]
    values, covered = np.zeros(shape, plane.dtype), np.zeros(shape, dtype=bool)
    source = tuple(slice(max(side.start, 0), min(side.stop, n)) for side, n in zip(window, plane.shape))
    target = tuple(slice(part.start - side.start, part.stop - side.start) for part, side in zip(source, window))
    values[target], covered[target] = plane[source], True
    return values, covered


def _tile(grey, spacing, outline, colour, covered=None) -> np.ndarray:
    """(TILE, TILE, 3) uint8: a plane (first axis to the right, second up) fitted into a square, with an outline on it."""
    size = np.array(grey.shape) * spacing  # mm
    zoom = (TILE - 2) / size.max() * spacing  # pixels a voxel
    shape = np.maximum(np.floor(np.array(grey.shape) * zoom).astype(int), 1)
    scaled = np.clip(_resized(grey, shape), 0, 1)
    picture = np.repeat((255 * scaled**0.9)[..., None], 3, axis=2)
    if covered is not None:
        beyond = _resized(covered, shape) < 0.5
        stripes = (np.indices(tuple(shape)).sum(0) % 8 < 2)[..., None] * np.array([90, 90, 90.0])
        picture = np.where(beyond[..., None], 30 + stripes, picture)
    filled = _resized(outline, shape) >= 0.5
    picture[filled & ~ndimage.binary_erosion(filled)] = colour
    tile = np.zeros((TILE, TILE, 3), np.uint8)
    left, bottom = (TILE - shape) // 2
    tile[left : left + shape[0], bottom : bottom + shape[1]] = picture
    return tile.transpose(1, 0, 2)[::-1]


def _resized(plane: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Linear interpolation, smoothed first where pixels are larger than voxels."""
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(image.resize((int(shape[1]), int(shape[0])), Image.Resampling.BILINEAR))
