import numpy as np
import pytest

from fedbrain.imaging.bias_field import log_bias_field
from fedbrain.imaging.reading import ScanFailure

VOXEL = np.array([4.0, 4.0, 4.0])


def tissue_ball():
    """Two tissues of fixed intensities, in layers, within a ball: (30, 30, 30) values and mask."""
    index = np.indices((30, 30, 30)) - 14.5
    mask = (index**2).sum(0) < 13**2
    noise = np.random.default_rng(0).normal(0, 2, mask.shape)
    return (np.where((np.indices((30, 30, 30)).sum(0) // 3) % 2, 100, 60) + noise).astype(np.float32), mask


def test_a_known_smooth_field_is_found():
    values, mask = tissue_ball()
    true = 0.4 * np.linspace(-1, 1, 30)[:, None, None] * np.ones((30, 30, 30))
    true -= true[mask].mean()
    found = log_bias_field(values * np.exp(true).astype(np.float32), mask, VOXEL, spacing=4, iterations=[30, 30])
    assert found.shape == values.shape
    assert abs(found[mask].mean()) < 1e-4
    assert np.corrcoef(found[mask], true[mask])[0, 1] > 0.98
    assert (found - true)[mask].std() < 0.3 * true[mask].std()


def test_an_even_image_gets_an_even_field():
    values, mask = tissue_ball()
    assert log_bias_field(values, mask, VOXEL, spacing=4, iterations=[30, 30])[mask].std() < 0.02


def test_the_scanners_scale_does_not_change_the_field():
    values, mask = tissue_ball()
    one = log_bias_field(values, mask, VOXEL, spacing=8, iterations=[20])
    np.testing.assert_allclose(log_bias_field(values * 64, mask, VOXEL, spacing=8, iterations=[20]), one, atol=2e-3)


def test_thinning_puts_the_field_at_the_right_place():
    # The same field from every voxel and from every second one: a shift by half a step would show as a slope's offset.
    values, mask = tissue_ball()
    true = 0.4 * np.linspace(-1, 1, 30)[:, None, None] * np.ones((30, 30, 30))
    biased = values * np.exp(true).astype(np.float32)
    fine, coarse = (log_bias_field(biased, mask, VOXEL, spacing=s, iterations=[30, 30]) for s in (4, 8))
    assert np.abs((fine - coarse)[mask]).mean() < 0.02


def test_a_normalized_image_and_a_crumb_are_refused():
    values, mask = tissue_ball()
    with pytest.raises(ScanFailure, match="normalized already"):
        log_bias_field((values - 80) / 20, mask, VOXEL, spacing=4, iterations=[5])
    crumb = np.zeros_like(mask)
    crumb[14:16, 14:16, 14:16] = True
    with pytest.raises(ScanFailure, match="too small"):
        log_bias_field(values, crumb, VOXEL, spacing=4, iterations=[5])
