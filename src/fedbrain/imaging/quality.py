"""Quality metrics of one preprocessed scan: each a formula, the direction that is good, and where it comes from.

Metrics flag scans to look at; none of them throws a scan out. Left and right cannot be told by them: the template is
symmetric. Tissue here is where the template's own maps say so after the affine alignment (ours; MRIQC segments each
scan), so CJV and SNR are good for comparing scans of one study, not for comparing with MRIQC's numbers.
"""

import numpy as np

TISSUE_PROBABILITY = 0.8  # a voxel counts as grey or white matter above this in the template's map (ours)
COLUMNS = (
    "brain_volume_ml",
    "template_correlation",
    "mask_dice",
    "affine_determinant",
    "cjv",
    "snr_white_matter",
    "bias_log_sd",
    "edge_fraction",
    "outside_grid_fraction",
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


def cjv(white: np.ndarray, grey: np.ndarray) -> float:
    """(s_white + s_grey) / |m_white - m_grey|, m medians, s scaled MADs. Lower is better (Ganzetti 2016; MRIQC)."""
    return (_spread(white) + _spread(grey)) / abs(float(np.median(white)) - float(np.median(grey)))


def snr(tissue: np.ndarray) -> float:
    """m / (s sqrt(n / (n - 1))) within one tissue, m median, s standard deviation. Higher is better (MRIQC's snr)."""
    return float(np.median(tissue)) / (float(tissue.std(dtype=np.float64)) * (tissue.size / (tissue.size - 1)) ** 0.5)


def bias_log_sd(log_field: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation of the bias field's logarithm over the brain. Lower is a more even coil; ours."""
    return float(log_field[mask].std(dtype=np.float64))


def edge_fraction(mask: np.ndarray) -> float:
    """Share of brain voxels in the native volume's outermost layer: brain that was cut off. 0 is good; ours."""
    return 1 - float(np.count_nonzero(mask[1:-1, 1:-1, 1:-1])) / float(np.count_nonzero(mask))


def outside_grid_fraction(mask_on_grid: np.ndarray, voxel_volume: float, expected_ml: float) -> float:
    """1 - brain on the MNI grid / brain that the affine sends there: brain lost beyond the grid. 0 is good; ours."""
    return 1 - float(np.count_nonzero(mask_on_grid)) * voxel_volume / 1000 / expected_ml


def _spread(values: np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))  # equals the deviation of a Gaussian
