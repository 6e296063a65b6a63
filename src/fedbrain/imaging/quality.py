"""Quality metrics of one preprocessed scan: each a formula, the direction that is good, and where it comes from.

Metrics flag scans to look at; none of them throws a scan out. Left and right cannot be told by them: the template is
symmetric. Tissue here is where the template's own maps say so after the affine alignment (ours; MRIQC segments each
scan), so CJV and SNR are good for comparing scans of one study, not for comparing with MRIQC's numbers.
"""

import numpy as np
from scipy import ndimage

TISSUE_PROBABILITY = 0.8  # a voxel counts as grey or white matter above this in the template's map (ours)
COLUMNS = (
    "brain_volume_ml",
    "template_correlation",
    "mask_dice",
    "affine_determinant",
    "cjv",
    "snr_white_matter",
    "snr_grey_matter",
    "smoothness_mm",
    "efc",
    "rim_intensity",
    "left_right_correlation",
    "left_right_dice",
    "bias_log_sd",
    "edge_fraction",
    "fov_coverage",
    "outside_grid_fraction",
    "registration_similarity",
    "head_rotation_degrees",
    "header_conflict",
)


def brain_volume_ml(mask: np.ndarray, voxel_volume: float) -> float:
    """Voxels in the native brain mask times the voxel's volume (mm^3) / 1000. Adults: about 1,000 to 1,900 ml."""
    return float(np.count_nonzero(mask)) * voxel_volume / 1000


def template_correlation(values: np.ndarray, template: np.ndarray, region: np.ndarray) -> float:
    """Pearson's r of scan and template over the union of both brains. Higher is better; ours."""
    return float(np.corrcoef(values[region].astype(np.float64), template[region].astype(np.float64))[0, 1])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two masks. Higher is better, 1 is equal (Dice 1945)."""
    return 2 * float(np.count_nonzero(a & b)) / float(np.count_nonzero(a) + np.count_nonzero(b))


def affine_determinant(native_to_mni: np.ndarray) -> float:
    """Determinant of the affine from scanner to MNI mm, the head's enlargement. Typical: 1 to 1.9; ours."""
    return float(np.linalg.det(native_to_mni[:3, :3]))


def rotation_degrees(mni_to_scanner: np.ndarray) -> float:
    """Angle of the rotation in the affine: how far the head lies from what the header says. 0 to about 30; ours.

    About 90 or 180 where the header names the wrong axes, which the registration found out.
    """
    left, _, right = np.linalg.svd(mni_to_scanner[:3, :3])
    return float(np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1))))


def cjv(white: np.ndarray, grey: np.ndarray) -> float:
    """(s_white + s_grey) / |m_white - m_grey|, m medians, s scaled MADs. Lower is better (Ganzetti 2016; MRIQC)."""
    apart = np.abs(np.float64(np.median(white)) - np.float64(np.median(grey)))
    return float((_spread(white) + _spread(grey)) / apart)  # infinite, and no error, where they are equally bright


def snr(tissue: np.ndarray) -> float:
    """m / (s sqrt(n / (n - 1))) within one tissue, m median, s standard deviation. Higher is better (MRIQC's snr)."""
    deviation = tissue.std(dtype=np.float64) * (tissue.size / (tissue.size - 1)) ** 0.5
    return float(np.float64(np.median(tissue)) / deviation)  # infinite, and no error, where all voxels are equal


def bias_log_sd(log_field: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation of the bias field's logarithm over the brain. Lower is a more even coil; ours."""
    return float(log_field[mask].std(dtype=np.float64))


def edge_fraction(mask: np.ndarray) -> float:
    """Share of brain voxels in the native volume's outermost layer: brain that was cut off. 0 is good; ours."""
    return 1 - float(np.count_nonzero(mask[1:-1, 1:-1, 1:-1])) / float(np.count_nonzero(mask))


def outside_grid_fraction(mask_on_grid: np.ndarray, voxel_volume: float, expected_ml: float) -> float:
    """1 - brain on the MNI grid / brain that the affine sends there: brain lost beyond the grid. 0 is good; ours."""
    return 1 - float(np.count_nonzero(mask_on_grid)) * voxel_volume / 1000 / expected_ml


def smoothness_mm(values: np.ndarray, mask: np.ndarray, voxel_size: np.ndarray) -> float:
    """Full width at half maximum of the image's own smoothness, in mm: geometric mean over the three axes.

    Per axis d sqrt(-2 ln 2 / ln(1 - var(differences of neighbours) / (2 var(values)))), d the voxel's size, within the
    mask (Forman 1995; as AFNI's 3dFWHMx and MRIQC's fwhm). Motion and filters raise it, noise lowers it; 0 is white noise.
    """
    variance = float(values[mask].var(dtype=np.float64))
    widths = []
    for axis, size in enumerate(voxel_size):
        low, high = ([slice(None)] * 3 for _ in range(2))
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        low, high = tuple(low), tuple(high)
        steps = (values[high] - values[low])[mask[high] & mask[low]]
        kept = 1 - float(steps.var(dtype=np.float64)) / (2 * variance)  # correlation of neighbours
        widths.append(size * (-2 * np.log(2) / np.log(kept)) ** 0.5 if kept > 0 else 0.0)
    return float(np.prod(widths) ** (1 / 3))


def efc(values: np.ndarray) -> float:
    """Entropy focus criterion of the scan as it came, background included; 0 all energy in one voxel, 1 spread evenly.

    -sum(x / b ln(x / b)) / (sqrt(N) ln sqrt(N)), b = sqrt(sum(x^2)) (Atkinson 1997; MRIQC's efc), on every second voxel
    along each axis (ours). Ghosts and blurring raise it; so does a defaced or padded background change it.
    """
    sample = np.abs(values[::2, ::2, ::2]).astype(np.float64)
    sample /= np.sqrt(np.square(sample).sum())
    positive = sample[sample > 0]
    root = sample.size**0.5
    return float(-(positive * np.log(positive)).sum() / (root * np.log(root)))


def rim_intensity(values: np.ndarray, mask: np.ndarray) -> float:
    """Median of the second and third layer of voxels around the mask over the median within. Lower is better; ours.

    Around a brain lies dark fluid and bone; around a mask that is too small lies brain, around one that is too large fat and
    muscle. NaN where nothing lies around the mask.
    """
    near = ndimage.binary_dilation(mask)
    around = ndimage.binary_dilation(near, iterations=2) & ~near
    return float(np.median(values[around]) / np.median(values[mask])) if around.any() else np.nan


def left_right_correlation(values: np.ndarray, mask: np.ndarray) -> float:
    """Pearson's r of a volume (X, Y, Z) and its mirror image where both have brain; the grid is symmetric in x.

    Low where one side differs (signal lost, a tilted brain), near 1 where a side was copied or many heads averaged; ours.
    """
    both = mask & mask[::-1]
    return float(np.corrcoef(values[both].astype(np.float64), values[::-1][both].astype(np.float64))[0, 1])


def fov_coverage(template_mask: np.ndarray, voxel_map: np.ndarray, shape: tuple[int, ...]) -> float:
    """Share of the template's brain that the affine puts inside the scan's field of view. 1 is good; ours.

    ``voxel_map`` (4, 4) goes from a voxel of the grid to one of the scan, whose ``shape`` is (X, Y, Z). On every second
    voxel along each axis.
    """
    places = 2 * np.argwhere(template_mask[::2, ::2, ::2])  # (N, 3)
    there = places @ voxel_map[:3, :3].T + voxel_map[:3, 3]
    return float(np.mean(((there >= -0.5) & (there <= np.array(shape) - 0.5)).all(axis=1)))


def _spread(values: np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))  # equals the deviation of a Gaussian
