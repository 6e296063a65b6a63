import numpy as np
import pytest

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


def test_outside_grid_fraction():
    assert quality.outside_grid_fraction(box(2, 3, 4), 500, expected_ml=12) == pytest.approx(0)
    assert quality.outside_grid_fraction(box(2, 3, 4), 500, expected_ml=48) == pytest.approx(0.75)
