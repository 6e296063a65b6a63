import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import mutual_info_score

from fedbrain.imaging.extractors import template as module
from fedbrain.imaging.extractors.template import template
from fedbrain.imaging.quality import dice
from fedbrain.imaging.reading import Scan, ScanFailure, decode, read_source


def test_the_surface_moves_to_where_tissue_ends():
    distance = 1.5 * np.linalg.norm(np.indices((80, 80, 80)) - 39.5, axis=0)  # mm
    relative = np.where(distance < 44, 0.9, 0.05).astype(np.float32)  # tissue of 44 mm, bone about it
    inside = distance < 38
    for reach, kinship, smoothing in module.PASSES:
        inside, _ = module._moved(relative, inside, reach, kinship, smoothing)
    radius = (np.count_nonzero(inside) * 1.5**3 * 3 / (4 * np.pi)) ** (1 / 3)
    assert abs(radius - 44) < 1


def test_signed_distance_is_negative_inside_and_in_millimetres():
    inside = np.zeros((9, 9, 9), bool)
    inside[3:6, 3:6, 3:6] = True
    distance = module._signed_distance(inside)
    assert distance[4, 4, 4] == -3.0  # two voxels of 1.5 mm
    assert distance[4, 4, 7] == 3.0
    np.testing.assert_array_equal(distance < 0, inside)


def test_otsu_parts_two_classes_and_mutual_information_is_that_of_the_counts():
    values = np.concatenate([np.full(300, 1.0), np.full(100, 9.0)])
    assert 1 < module._otsu(values) < 9
    rng = np.random.default_rng(0)
    a = rng.integers(0, 32, 5000)
    b = (a + rng.integers(0, 8, 5000)) % 32
    assert module._mutual_information(a, b) == pytest.approx(mutual_info_score(a, b), rel=1e-9)


def test_an_image_without_a_head_is_a_reason():
    affine = np.diag([4.0, 4, 4, 1])
    noise = np.random.default_rng(0).normal(100, 1, (50, 50, 50)).astype(np.float32)
    with pytest.raises(ScanFailure):
        template(Scan(noise * 0 + np.eye(50, dtype=np.float32)[0], affine), None)


def test_a_real_brain_is_found_without_a_network(real_heads):
    name = "ds000240-sub01"
    scan = decode(read_source(real_heads / "heads" / f"{name}_T1w.nii.gz"))
    before = scan.values.copy()
    brain, facts = template(scan, None)
    reference = decode(read_source(real_heads / "brain_masks" / f"{name}_brainmask.nii.gz")).values > 0.5
    assert dice(brain, reference) >= 0.95
    assert ndimage.label(brain)[1] == 1
    assert facts["components"] >= 1
    np.testing.assert_array_equal(scan.values, before)
