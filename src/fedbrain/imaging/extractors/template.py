"""Brain mask by registration, without a network: the MNI152 brain is laid into the head, then its surface is moved.

1. The template's brain, with a dark rim drawn about it for fluid and bone, is laid on the head by affine registration
   (ANTs, mutual information within brain and rim). Three starts that differ in pitch, beginning from the head's top.
2. N4 within that brain, on voxels of 1.5 mm.
3. The surface moves along its normals, twice, to where tissue ends: along each normal every millimetre counts for or
   against the brain by its intensity relative to white matter, a far way counts against itself, and neighbours decide
   together.
4. One millimetre outwards, since masks in the field hold the fluid about the brain, too.

The numbers are ours, chosen on six heads of young and middle-aged adults (docs/preprocessing.md says how well they do).
The head must lie upright by its header, as for any affine registration that starts from the axes; one that does not is turned
first (fedbrain.imaging.shard).
"""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage, sparse
from scipy.spatial import cKDTree

from fedbrain.imaging import bias_field, registration
from fedbrain.imaging.brain_extraction import Extraction, components, largest_component, of_sane_size
from fedbrain.imaging.faults import is_of_machine
from fedbrain.imaging.reading import Scan, ScanFailure

SEED = 1
RESOLUTION = 3  # mm, of the affine registration
RIM = 6.0  # mm of darkness about the template's brain, within which images are compared
RIM_INTENSITY = 0.1  # the template's white matter is near 0.85
PITCHES = (-20.0, 0.0, 20.0)  # degrees, of the starts
START_SCALE = 0.92  # heads are smaller than the template
SCALP = 9.0  # mm from the brain's top to the head's
BRIGHTEST = 99.5  # percentile, where intensities are cut
SURFACE_RESOLUTION = 1.5  # mm
MARGIN = 20.0  # mm about the first brain, within which the surface may move
WHITE = 70  # percentile of the brain's core that stands for white matter
# What one millimetre counts for the brain, by intensity over white matter's: bone, fluid, tissue, fat.
INTENSITIES = (0.0, 0.15, 0.3, 0.45, 0.6, 1.15, 1.3, 2.0)
COUNTS = (-1.5, -1.0, -0.4, 0.3, 1.0, 1.0, -1.5, -1.5)
STIFFNESS = 0.1  # per mm^2, against moving far
PASSES = ((12.0, 8.0, 4.0), (8.0, 5.0, 3.0))  # mm: reach, how far neighbours decide together, smoothing
OUTSET = 1.0  # mm


def template(scan: Scan, mask: Scan | None, *, device: str = "cpu", options=None) -> Extraction:
    """Brain by registration of the MNI152 template and a surface that moves to the edge of tissue.

    Same scan, same bytes, with one ITK thread; no weights, no accelerator. Facts: ``mutual_information`` within brain and
    rim after the affine, ``moved_mm``, the surface's mean way, and ``components`` of the mask before the largest was taken.

    Raises ScanFailure where the head is not found, or the template cannot be laid on it.
    """
    upright = registration.without_shear(scan.affine)
    ceiling = np.percentile(scan.values, BRIGHTEST)
    head = np.minimum(scan.values, ceiling) - scan.values.min()
    mni_to_scanner, similarity = _laid_on_head(head, upright)

    values, affine = registration.thinned(scan.values, upright, SURFACE_RESOLUTION)
    brain, brain_affine = _template_brain()
    inside = registration.resample(brain, np.linalg.inv(mni_to_scanner @ brain_affine) @ affine, values.shape) >= 0.5
    if not inside.any():
        raise ScanFailure("the template was sent outside the scan; look at it: is it a T1w head, whole and upright?")
    box = tuple(
        slice(
            max(0, int(min(filled) - MARGIN / SURFACE_RESOLUTION)), int(max(filled) + MARGIN / SURFACE_RESOLUTION) + 2
        )
        for filled in np.nonzero(inside)
    )
    values, inside, affine = values[box], inside[box], affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    field = bias_field.log_bias_field(
        values, inside, np.full(3, SURFACE_RESOLUTION), spacing=6.0, iterations=[20, 20, 50]
    )
    relative = values * np.exp(-np.clip(field, -1.5, 1.5))  # far from the brain N4 guesses
    core = ndimage.binary_erosion(inside, iterations=4)
    white = np.percentile(relative[core], WHITE) if core.any() else 0.0
    if white <= 0:
        raise ScanFailure("the template finds no brain; look at the scan: is it a T1w head, whole and upright?")
    relative /= white

    way = np.zeros(1)
    for reach, kinship, smoothing in PASSES:
        inside, moved = _moved(relative, inside, reach, kinship, smoothing)
        way = np.append(way, np.abs(moved).mean())
    parts = components(inside)
    inside = ndimage.binary_fill_holes(largest_component(inside))
    # Positive within the outset surface; half a voxel lies between a voxel's centre and its border.
    depth = OUTSET + 0.5 * SURFACE_RESOLUTION - _signed_distance(inside)
    on_scan = registration.resample(depth, np.linalg.inv(affine) @ upright, scan.values.shape) > 0
    on_scan = of_sane_size(largest_component(on_scan), scan, "the template finds")
    facts = {
        "mutual_information": round(similarity, 4),
        "moved_mm": round(float(way.sum()), 2),
        "components": parts,
    }
    return Extraction(on_scan, facts)


# The affine ----------------------------------------------------------------------------------------------------------


def _laid_on_head(head: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, float]:
    """The affine from MNI mm to scanner mm (4, 4), and the mutual information (nats) within brain and rim."""
    import ants

    fixed, region = _rimmed_brain()
    moving = registration.ants_image(*registration.thinned(head, affine, RESOLUTION))
    within = region.numpy() > 0
    ants.config.set_ants_deterministic(True, SEED)

    def registered(start: str, name: str, iterations, shrink, smooth) -> tuple[float, str]:
        found = ants.registration(
            fixed,
            moving,
            type_of_transform="Affine",
            initial_transform=[start],
            outprefix=str(Path(folder) / name),
            mask=region,
            mask_all_stages=True,
            aff_iterations=iterations,
            aff_shrink_factors=shrink,
            aff_smoothing_sigmas=smooth,
        )["fwdtransforms"]
        warped = ants.apply_transforms(fixed, moving, found).numpy()
        return _mutual_information(fixed.numpy()[within], warped[within]), found[0]

    with tempfile.TemporaryDirectory() as folder:
        try:
            tried = []
            for number, start in enumerate(_starts(head, affine)):
                path = str(Path(folder) / f"start{number}.mat")
                ants.write_transform(
                    ants.create_ants_transform(
                        transform_type="AffineTransform", dimension=3, matrix=start[:3, :3], translation=start[:3, 3]
                    ),
                    path,
                )
                tried.append(registered(path, f"start{number}_", (150, 100), (4, 2), (2, 1)))
            similarity, path = registered(max(tried)[1], "best_", (200, 100), (2, 1), (1, 0))
            transform = ants.read_transform(path)
        except (RuntimeError, IndexError) as error:
            if is_of_machine(error):
                raise
            (Path(folder) / "room").write_bytes(bytes(1 << 16))  # else ANTs may have failed by a full temporary disk
            raise ScanFailure(f"the template cannot be laid on the head ({error}); look at the scan") from None
    linear, shift = np.reshape(transform.parameters[:9], (3, 3)), np.asarray(transform.parameters[9:])
    centre = np.asarray(transform.fixed_parameters)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, centre + shift - linear @ centre
    if not np.isfinite(matrix).all() or np.linalg.det(linear) <= 0:
        raise ScanFailure("the template cannot be laid on the head; look at the scan: is it whole and upright?")
    return matrix, similarity


def _starts(head: np.ndarray, affine: np.ndarray):
    """Maps (4, 4) from MNI to scanner mm that put the template's brain under the head's top, nodding differently."""
    step = np.maximum(1, np.rint(4 / np.linalg.norm(affine[:3, :3], axis=0))).astype(int)
    thinned = ndimage.uniform_filter(head, step)[tuple(slice(None, None, s) for s in step)]
    foreground = largest_component(ndimage.binary_opening(thinned > 0.5 * _otsu(thinned)))
    places = (np.argwhere(foreground) * step) @ affine[:3, :3].T + affine[:3, 3]  # (N, 3) mm
    if not len(places):
        raise ScanFailure("no head stands out from the background; look at the scan")
    top = np.percentile(places[:, 2], 99.8)
    slab = places[(places[:, 2] > top - 110) & (places[:, 2] < top - 20)]
    middle = np.percentile(slab if len(slab) else places, (1, 99), axis=0).mean(axis=0)
    brain_top, centre = 82.0, np.array(registration.GRID_CENTRE)
    aim = np.array([middle[0], middle[1], top - START_SCALE * (brain_top + SCALP - centre[2])])
    for pitch in np.deg2rad(PITCHES):
        start = np.eye(4)
        start[1:3, 1:3] = [[np.cos(pitch), -np.sin(pitch)], [np.sin(pitch), np.cos(pitch)]]
        start[:3, :3] *= START_SCALE
        start[:3, 3] = aim - start[:3, :3] @ centre
        yield start


def _otsu(values: np.ndarray) -> float:
    """The threshold that parts the values into two classes with the largest variance between them (Otsu 1979)."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, weighted = np.cumsum(counts)[:-1], np.cumsum(counts * centres)
    above = counts.sum() - below
    between = np.zeros(len(below))
    parted = (below > 0) & (above > 0)
    between[parted] = (weighted[-1] * below - weighted[:-1] * counts.sum())[parted] ** 2 / (below * above)[parted]
    return float(centres[np.argmax(between)])


def _mutual_information(a: np.ndarray, b: np.ndarray, bins: int = 32) -> float:
    counts = np.histogram2d(a, b, bins)[0]
    joint = counts / counts.sum()
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())


@cache
def _template_brain() -> tuple[np.ndarray, np.ndarray]:
    """The template's brain mask at 1 mm, float32, and its affine."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1)
    return (image.get_fdata(dtype=np.float32) > 0).astype(np.float32), image.affine


@cache
def _rimmed_brain():
    """The template's brain in a dark rim, and the region of both, as ITK images."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1)
    room = 20
    values = np.pad(image.get_fdata(dtype=np.float32), room)
    affine = image.affine.copy()
    affine[:3, 3] -= room  # its axes are RAS, its voxels 1 mm
    brain = values > 0
    near = (ndimage.distance_transform_edt(~brain) <= RIM).astype(np.float32)
    rimmed = np.where(brain, values, np.float32(RIM_INTENSITY))
    region, grid = registration.thinned(near, affine, RESOLUTION)
    fixed = registration.ants_image(registration.thinned(rimmed, affine, RESOLUTION)[0], grid)
    return fixed, registration.ants_image((region >= 0.5).astype(np.float32), grid)


# The surface ---------------------------------------------------------------------------------------------------------


def _moved(
    relative: np.ndarray, inside: np.ndarray, reach: float, kinship: float, smoothing: float
) -> tuple[np.ndarray, np.ndarray]:
    """The brain (X, Y, Z) after its surface moved to the edge of tissue, and the way (N,) mm of its points, outwards.

    ``relative`` is the intensity over white matter's. Cumulated counts along each normal (-reach to reach) are averaged
    over neighbours before the best end is taken; the ways are then averaged and spread to the voxels about the surface.
    """
    height = ndimage.gaussian_filter(_signed_distance(inside), 1.0)
    points = np.argwhere(inside & ~ndimage.binary_erosion(inside))
    points = points[(points.sum(1) % 2 == 0) & (points[:, 0] % 2 == 0)]  # a quarter of them is enough
    normals = np.stack([ndimage.map_coordinates(slope, points.T, order=0) for slope in np.gradient(height)], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-6  # (N, 3)
    ways = np.arange(-reach, reach + 0.5, 1.0)  # (W,) mm
    along = points[:, None] + normals[:, None] * (ways / SURFACE_RESOLUTION)[:, None]  # (N, W, 3)
    seen = ndimage.map_coordinates(relative, along.reshape(-1, 3).T, order=1).reshape(len(points), len(ways))
    counts = np.cumsum(np.interp(seen, INTENSITIES, COUNTS), axis=1) - STIFFNESS * ways**2

    tree = cKDTree(points * SURFACE_RESOLUTION)
    pairs = tree.sparse_distance_matrix(tree, 2 * kinship, output_type="coo_matrix")
    weights = sparse.coo_matrix((np.exp(-0.5 * (pairs.data / kinship) ** 2), (pairs.row, pairs.col)), pairs.shape)
    weights = weights.tocsr() + sparse.eye(len(points), format="csr")  # a point is no pair with itself
    weights = sparse.diags(1 / np.asarray(weights.sum(1)).ravel()) @ weights
    moved = weights @ ways[np.argmax(weights @ counts, axis=1)]

    sums, shares = np.zeros(inside.shape, np.float32), np.zeros(inside.shape, np.float32)
    sums[tuple(points.T)], shares[tuple(points.T)] = moved, 1
    sums, shares = (
        ndimage.gaussian_filter(part, smoothing / SURFACE_RESOLUTION, truncate=6) for part in (sums, shares)
    )
    spread = np.divide(sums, shares, out=np.zeros_like(sums), where=shares > 1e-12)
    return largest_component(height < spread), moved


def _signed_distance(inside: np.ndarray) -> np.ndarray:
    """mm between voxel centres, to the nearest voxel on the other side; negative inside."""
    outside = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
    return (SURFACE_RESOLUTION * outside).astype(np.float32)
