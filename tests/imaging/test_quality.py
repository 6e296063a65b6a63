import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fedbrain.imaging import quality


def box(*shape, of=(10, 10, 10)):
    mask = np.zeros(of, dtype=bool)
    mask[tuple(slice(3, 3 + n) for n in shape)] = True
    return mask


def test_brain_volume_of_a_box():
    assert quality.brain_volume_ml(box(2, 3, 4), voxel_volume=500) == pytest.approx(12)


def test_dice_of_half_overlapping_boxes():
    a, b = box(4, 2, 2), np.roll(box(4, 2, 2), 2, axis=0)
    assert quality.dice(a, b) == pytest.approx(0.5)
    assert quality.dice(a, a) == 1
    assert quality.dice(a, np.roll(a, 4, axis=0)) == 0


def test_correlation_is_blind_to_scale_and_to_what_lies_outside_the_region():
    template, region = np.random.default_rng(0).random((10, 10, 10)), box(5, 5, 5)
    values = 3 * template + 7
    values[~region] = -1
    assert quality.template_correlation(values, template, region) == pytest.approx(1)
    assert quality.template_correlation(-values, template, region) == pytest.approx(-1)


def test_determinant_of_a_rotation_with_enlargement():
    affine = np.array([[0, -1.2, 0, 5], [1.2, 0, 0, 6], [0, 0, 1.2, 7], [0, 0, 0, 1]])
    assert quality.affine_determinant(affine) == pytest.approx(1.728)


def test_cjv_by_hand():
    white, grey = np.array([90.0, 100, 100, 110, 120]), np.array([50.0, 60, 70])
    # medians 100 and 60; absolute deviations 10 0 0 10 20 and 10 0 10, medians 10 and 10
    assert quality.cjv(white, grey) == pytest.approx(1.4826 * 20 / 40)


def test_snr_by_hand():
    # median 4, population deviation sqrt(8 / 3), n = 3
    assert quality.snr(np.array([2.0, 4, 6])) == pytest.approx(4 / np.sqrt(8 / 3 * 3 / 2))


def test_bias_log_sd_counts_the_brain_only():
    field, mask = np.full((10, 10, 10), 9.0), box(2, 1, 1)
    field[3:5, 3, 3] = 1, 3
    assert quality.bias_log_sd(field, mask) == pytest.approx(1)


def test_edge_fraction_of_a_column_through_the_whole_volume():
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask[5, 5, :] = True
    assert quality.edge_fraction(mask) == pytest.approx(0.2)
    assert quality.edge_fraction(box(4, 4, 4)) == pytest.approx(0)


def test_tissue_without_contrast_or_noise_is_no_error():
    flat = np.full(50, 7, np.float32)
    noisy = np.linspace(5, 9, 51).astype(np.float32)  # its median is 7, too
    with np.errstate(all="ignore"):
        assert quality.cjv(flat, noisy) == np.inf
        assert np.isnan(quality.cjv(flat, flat))
        assert quality.snr(flat) == np.inf
        assert np.isnan(quality.snr(0 * flat))


def test_outside_grid_fraction():
    assert quality.outside_grid_fraction(box(2, 3, 4), 500, expected_ml=12) == pytest.approx(0)
    assert quality.outside_grid_fraction(box(2, 3, 4), 500, expected_ml=48) == pytest.approx(0.75)


def test_smoothness_of_smoothed_noise_is_the_width_of_the_kernel_in_mm():
    noise = np.random.default_rng(0).normal(size=(60, 60, 60))
    sigma = np.array([2.0, 1.5, 3.0])  # voxels
    size = np.array([1.0, 2.0, 0.8])  # mm
    smooth = gaussian_filter(noise, sigma, mode="wrap")
    mask = np.ones(noise.shape, dtype=bool)
    expected = np.prod(2.3548 * sigma * size) ** (1 / 3)
    assert quality.smoothness_mm(smooth, mask, size) == pytest.approx(expected, rel=0.06)
    assert quality.smoothness_mm(noise, mask, size) < 1.2  # neighbours have nothing in common


def test_smoothness_knows_no_brightness_and_only_the_mask():
    values, mask = (
        gaussian_filter(np.random.default_rng(1).normal(size=(20, 20, 20)), 2),
        box(12, 12, 12, of=(20, 20, 20)),
    )
    once = quality.smoothness_mm(values, mask, np.ones(3))
    spoiled = np.where(mask, 7 * values + 50, 1e6)
    assert quality.smoothness_mm(spoiled, mask, np.ones(3)) == pytest.approx(once, rel=1e-6)


def test_entropy_focus_is_one_for_an_even_image_and_nought_for_one_bright_voxel():
    assert quality.efc(np.full((8, 8, 8), 3.0)) == pytest.approx(1)
    single = np.zeros((8, 8, 8))
    single[2, 4, 6] = 5
    assert quality.efc(single) == 0
    # four equal voxels of 64: E = -4 (1/2 ln 1/2) = 2 ln 2, at most 8 ln 8 = 24 ln 2
    four = np.zeros((8, 8, 8))
    four[0, 0, :] = 2
    assert quality.efc(four) == pytest.approx(2 / 24)


def test_rim_intensity_of_a_ball_in_a_shell():
    away = np.sqrt(((np.indices((30, 30, 30)) - 14.5) ** 2).sum(0))
    head = np.select([away < 8, away < 11, away < 14], [100.0, 20, 300], 0)
    assert quality.rim_intensity(head, away < 8) == pytest.approx(0.2)
    assert quality.rim_intensity(head, away < 4) == pytest.approx(1)  # brain left outside
    assert quality.rim_intensity(head, away < 10.8) == pytest.approx(15)  # the mask is too large, skin lies around it
    assert np.isnan(quality.rim_intensity(head, np.ones(head.shape, dtype=bool)))


def test_left_right_correlation_of_mirror_images_and_of_their_opposites():
    half = np.random.default_rng(0).random((5, 10, 10))
    mask = np.ones((10, 10, 10), dtype=bool)
    assert quality.left_right_correlation(np.concatenate([half, half[::-1]]), mask) == pytest.approx(1)
    assert quality.left_right_correlation(np.concatenate([half, -half[::-1]]), mask) == pytest.approx(-1)
    lopsided = mask.copy()
    lopsided[:2] = False  # counted on neither side then
    values = np.concatenate([half, half[::-1]])
    values[[0, 1, 8, 9]] = 99
    assert quality.left_right_correlation(values, lopsided) == pytest.approx(1)


def test_field_of_view_counts_the_template_inside_the_scan():
    template = np.zeros((20, 20, 20), dtype=bool)
    template[4:16, 4:16, 4:16] = True  # every second voxel: 4, 6, ... 14
    assert quality.fov_coverage(template, np.eye(4), (20, 20, 20)) == 1
    assert quality.fov_coverage(template, np.eye(4), (20, 20, 10)) == pytest.approx(3 / 6)
    shifted = np.eye(4)
    shifted[0, 3] = 100
    assert quality.fov_coverage(template, shifted, (20, 20, 20)) == 0
