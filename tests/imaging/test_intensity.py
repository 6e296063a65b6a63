import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbrain import registry
from fedbrain.imaging.intensity import encoder_zscore, fcm, kde, minmax, unchanged, whitestripe, zscore
from fedbrain.imaging.reading import ScanFailure


def brain(seed=0, size=14, scale=100.0):
    rng = np.random.default_rng(seed)
    mask = rng.random((size, size, size)) < 0.4
    return np.where(mask, scale * (1 + rng.random(mask.shape)), 0).astype(np.float32), mask


def test_encoder_zscore_on_numbers_one_can_add_up():
    values = np.array([0, 0, 2, 4, 6], dtype=np.float32).reshape(5, 1, 1)
    result = encoder_zscore(values, values > 0)  # mean 4, deviation 2 (n - 1)
    np.testing.assert_allclose(result.ravel(), [-2, -2, -1, 0, 1])


def test_encoder_zscore_counts_a_masked_zero_as_background():
    values = np.array([0, 0, 2, 4, 6], dtype=np.float32).reshape(5, 1, 1)
    np.testing.assert_array_equal(
        encoder_zscore(values, np.ones_like(values, bool)), encoder_zscore(values, values > 0)
    )


@given(seed=st.integers(0, 50), factor=st.sampled_from([0.25, 2.0, 1024.0]))
def test_every_normalization_forgets_the_scanners_scale(seed, factor):
    values, mask = brain(seed, 10)
    for method in (encoder_zscore, zscore, minmax):
        np.testing.assert_allclose(method(values * factor, mask), method(values, mask), atol=1e-4)


@given(seed=st.integers(0, 50))
def test_within_the_mask_zscore_has_mean_0_and_deviation_1_and_0_outside(seed):
    values, mask = brain(seed, 12)
    result = zscore(values, mask)
    assert abs(result[mask].mean(dtype=np.float64)) < 1e-5
    assert abs(result[mask].std(dtype=np.float64, ddof=1) - 1) < 1e-5
    assert (result[~mask] == 0).all()


def test_minmax_spans_0_to_1_and_one_bright_voxel_does_not_set_the_scale():
    values, mask = brain(3, 20)
    plain = minmax(values, mask)
    assert plain[mask].min() == 0
    assert plain.max() == 1
    assert (plain[~mask] == 0).all()
    values[tuple(np.argwhere(mask)[0])] = 1e6
    assert abs(np.median(minmax(values, mask)[mask]) - np.median(plain[mask])) < 0.01


def test_unchanged_changes_nothing():
    values, mask = brain()
    np.testing.assert_array_equal(unchanged(values, mask), values)


@pytest.mark.parametrize("method", [encoder_zscore, zscore, minmax, whitestripe, kde, fcm])
def test_a_brain_of_one_intensity_or_none_is_refused(method):
    values, mask = brain()
    with pytest.raises(ScanFailure, match="one single intensity"):
        method(np.where(mask, np.float32(5), np.float32(0)), mask)
    with pytest.raises(ScanFailure, match="empty"):
        method(np.zeros_like(values), np.zeros_like(mask))


def test_all_registered_methods_keep_shape_and_return_float32():
    values, mask = brain()
    values[mask] += np.where(values[mask] > 140, np.float32(100), np.float32(0))  # two tissues
    for name in set(registry.names("intensity")) - set(registry.FITTED_INTENSITIES):
        result = registry.lookup("intensity", name)(values.astype(np.float64), mask)
        assert result.dtype == np.float32
        assert result.shape == values.shape
