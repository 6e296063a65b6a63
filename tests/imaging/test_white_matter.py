"""White matter in the histogram: whitestripe, kde and fcm."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbrain.imaging.intensity import BIN_WIDTHS, fcm, fuzzy_centres, kde, white_matter_peak, whitestripe
from fedbrain.imaging.reading import ScanFailure

FLUID, GREY, WHITE = 60.0, 150.0, 230.0


def head(seed=0, grey=0.5, deviation=10.0, size=48, scale=1.0):
    """Voxels of three tissues at known intensities within a mask; a share ``grey`` is grey matter, 0.1 fluid."""
    rng = np.random.default_rng(seed)
    mask = rng.random((size, size, size)) < 0.5
    draw = rng.random(mask.shape)
    tissue = np.select([draw < 0.1, draw < 0.1 + grey], [FLUID, GREY], WHITE)
    values = np.where(mask, np.maximum(tissue + rng.normal(0, deviation, mask.shape), 1), 0)
    return (scale * values).astype(np.float32), mask, tissue


@pytest.mark.parametrize("grey", [0.25, 0.5, 0.7])
def test_the_peak_is_that_of_white_matter_whichever_tissue_has_more_voxels(grey):
    values, mask, _ = head(grey=grey)
    assert abs(white_matter_peak(values[mask]) / WHITE - 1) < 0.02


def test_a_few_vessels_brighter_than_white_matter_are_no_peak():
    values, mask, _ = head(1)
    places = np.argwhere(mask)[::100]
    values[tuple(places.T)] = 2.5 * WHITE
    assert abs(white_matter_peak(values[mask]) / WHITE - 1) < 0.02


def test_kde_and_fcm_bring_white_matter_to_one_and_leave_the_background_at_zero():
    values, mask, tissue = head(2)
    white = mask & (tissue == WHITE)
    for method in (kde, fcm):
        result = method(values, mask)
        assert abs(np.median(result[white]) - 1) < 0.02
        assert (result[~mask] == 0).all()
        np.testing.assert_allclose(result * (values.max() / result.max()), values, rtol=1e-5)


def test_whitestripe_by_its_definition_where_the_peak_is_known():
    """White matter is half of the brain and symmetric about 230, so a tenth of the brain about 230 is the stripe."""
    values, mask, tissue = head(3, grey=0.4)
    result = whitestripe(values, mask)
    assert (
        abs(np.median(result[mask & (tissue == WHITE)])) < 0.35
    )  # of a deviation of the stripe, itself a 0.18th of its tissue's
    # The stripe holds the fifth of white matter about its centre: a normal's central fifth has a deviation of 0.1452 of it.
    slope = (result[mask].max() - result[mask].min()) / (values[mask].max() - values[mask].min())
    assert abs(1 / slope / (0.1452 * 10) - 1) < 0.05
    background = np.unique(result[~mask])
    assert len(background) == 1
    assert background[0] < result[mask].min()


def test_whitestripe_as_the_package_intensity_normalization_finds_it():
    package = pytest.importorskip("intensity_normalization.normalizers.individual.whitestripe")
    from intensity_normalization.adapters.images import NumpyImageAdapter

    values, mask, _ = head(4)
    other = package.WhiteStripeNormalizer()
    other.fit(NumpyImageAdapter(values), NumpyImageAdapter(mask))
    result = whitestripe(values, mask)
    slope, start = np.polyfit(values[mask].astype(float), result[mask].astype(float), 1)
    assert abs(-start / slope / other.mean - 1) < 0.01  # its peak lies on a grid of 80 points
    assert abs(1 / slope / other.std - 1) < 0.05


def test_the_centres_are_those_of_fuzzy_c_means_on_the_voxels():
    skfuzzy = pytest.importorskip("skfuzzy")
    values, mask, _ = head(5, size=24)
    brain = values[mask].astype(np.float64)
    expected = skfuzzy.cmeans(brain[None], 3, 2.0, error=1e-6, maxiter=500, seed=1)[0].ravel()
    np.testing.assert_allclose(fuzzy_centres(brain), np.sort(expected), rtol=1e-3)


def test_fcm_divides_by_the_mean_of_the_voxels_nearest_to_the_brightest_centre():
    values, mask, _ = head(6, size=24)
    brain = values[mask].astype(np.float64)
    nearest = np.abs(brain[:, None] - fuzzy_centres(brain)).argmin(axis=1)
    np.testing.assert_allclose(fcm(values, mask)[mask], brain / brain[nearest == 2].mean(), rtol=1e-6)


@given(seed=st.integers(0, 20), factor=st.sampled_from([0.125, 4.0, 1000.0]))
def test_white_matter_is_found_on_any_scale(seed, factor):
    values, mask, _ = head(seed, size=20)
    for method in (whitestripe, kde, fcm):
        np.testing.assert_allclose(
            method(values * np.float32(factor), mask), method(values, mask), rtol=1e-3, atol=1e-3
        )


def test_a_brain_whose_last_peak_is_dark_is_refused_and_so_is_one_of_fewer_than_three_intensities():
    rng = np.random.default_rng(0)
    fading = 20 + rng.exponential(80, (20, 20, 20)).astype(np.float32)  # most voxels at the dark end, no peak after it
    everywhere = np.ones(fading.shape, bool)
    for method in (whitestripe, kde):
        with pytest.raises(ScanFailure, match="no peak of white matter"):
            method(fading, everywhere)
    with pytest.raises(ScanFailure, match="not told apart"):
        fcm(np.where(fading > 60, np.float32(200), np.float32(100)), everywhere)


def test_bins_after_normalization_are_fine_enough_for_the_scale_and_not_too_many():
    values, mask, _ = head(7)
    for name, method in (("whitestripe", whitestripe), ("kde", kde), ("fcm", fcm)):
        spread = np.ptp(method(values, mask)[mask])
        assert 100 < spread / BIN_WIDTHS[name] < 3000
