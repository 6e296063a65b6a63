import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from scipy.stats import gaussian_kde

from fedbrain import registry
from fedbrain.figures.intensity import NORMALIZED, intensity_density, intensity_profiles, smoothed_density
from fedbrain.tables import HISTOGRAM


def words(figure):
    return " | ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))


def brain(seed, n=20_000):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(-0.8, 0.4, n // 2), rng.normal(0.9, 0.3, n - n // 2)])


def test_density_agrees_with_scipys_kernel_estimate_on_the_voxels():
    grid, bandwidth = np.linspace(-3, 3, 200), 0.04
    volumes = [brain(seed).reshape(20, 20, 50) for seed in (0, 1)]
    masks = [np.ones((20, 20, 50), bool), np.zeros((20, 20, 50), bool)]
    voxels = volumes[0].ravel()
    expected = gaussian_kde(voxels, bw_method=bandwidth / voxels.std(ddof=1))(grid)
    found = intensity_density(zip(volumes, masks), grid)
    assert 0.4 < expected.max() < 0.8
    np.testing.assert_allclose(found, expected, atol=4e-4)


def test_voxels_beyond_the_grid_count_in_the_total():
    volume = np.concatenate([brain(0), np.full(20_000, 50.0)])
    grid = np.linspace(-3, 3, 400)
    density = intensity_density([(volume, np.ones_like(volume, bool))], grid)
    assert np.trapezoid(density, grid) == pytest.approx(0.5, abs=2e-3)


def test_volumes_pool_by_their_voxels():
    a, b, grid = brain(0, 6000), brain(1, 2000) + 0.3, np.linspace(-3, 3, 100)
    one, two = (intensity_density([(v, np.ones_like(v, bool))], grid) for v in (a, b))
    both = intensity_density([(v, np.ones_like(v, bool)) for v in (a, b)], grid)
    np.testing.assert_allclose(both, 0.75 * one + 0.25 * two, atol=1e-12)


def test_empty_masks_are_refused():
    with pytest.raises(ValueError, match="no voxel"):
        intensity_density([(np.ones(5), np.zeros(5, bool))], np.linspace(0, 1, 5))


def test_the_density_of_an_even_bin_is_even_inside_and_integrates_to_its_share():
    grid = np.linspace(-1, 2, 3001)
    density = smoothed_density(np.array([0.0]), np.array([1.0]), np.array([0.8]), grid, 0.04)
    assert density[1500] == pytest.approx(0.8)
    assert density[1000] == pytest.approx(0.4, abs=1e-6)  # at the bin's edge half of the kernel is inside
    assert np.trapezoid(density, grid) == pytest.approx(0.8, abs=1e-6)


def line_of(axes, cohort):
    return next(line for line in axes.lines if line.get_label().startswith(cohort))


def test_profiles_integrate_to_one_on_both_axes(histograms, cohorts):
    before, after = intensity_profiles(histograms, cohorts).axes
    for cohort in cohorts:
        x, y = line_of(before, cohort).get_data()
        assert np.trapezoid(y, np.log10(x)) == pytest.approx(1, abs=0.01)
        x, y = line_of(after, cohort).get_data()
        assert np.trapezoid(y, x) == pytest.approx(1, abs=0.01)


def test_a_change_of_scale_moves_a_raw_profile_and_keeps_its_shape(histograms, cohorts):
    before = intensity_profiles(histograms, cohorts).axes[0]
    peaks = {}
    for cohort in cohorts:
        x, y = line_of(before, cohort).get_data()
        peaks[cohort] = x[y.argmax()], y.max()
    assert peaks["controls"][0] / peaks["north"][0] == pytest.approx(20, rel=0.05)
    assert peaks["controls"][1] == pytest.approx(peaks["north"][1], rel=0.1)


def test_shards_with_repeated_and_different_bins_add_up(histograms, cohorts):
    one = histograms["north"]
    halves = pd.concat([one.assign(start=one["start"] + k * one["width"] / 2, width=one["width"] / 2) for k in (0, 1)])
    x, expected = line_of(intensity_profiles({"north": one}, cohorts).axes[1], "north").get_data()
    _, doubled = line_of(intensity_profiles({"north": pd.concat([one, one])}, cohorts).axes[1], "north").get_data()
    np.testing.assert_allclose(doubled, expected, atol=1e-12)
    again, finer = line_of(intensity_profiles({"north": halves}, cohorts).axes[1], "north").get_data()
    np.testing.assert_allclose(np.interp(x, again, finer), expected, atol=1e-3)


def test_raw_voxels_at_or_below_zero_are_said(histograms, cohorts):
    extra = pd.DataFrame({"stage": ["before"], "start": [-1.0], "width": [1.0], "count": [10_000]})
    table = pd.concat([histograms["north"], extra]).astype(HISTOGRAM)
    assert "north (16.7% of raw voxels ≤ 0)" in words(intensity_profiles({"north": table}, cohorts))


def test_nothing_to_draw_is_said_in_words(histograms, cohorts):
    empty = {name: table.iloc[:0] for name, table in histograms.items()}
    for nothing in ({}, empty):
        figure = intensity_profiles(nothing, cohorts)
        figure.draw_without_rendering()
        assert "no voxels counted before" in words(figure)
        assert "no voxels counted after" in words(figure)
    only_after = {name: table[table["stage"] == "after"] for name, table in histograms.items()}
    assert "no voxels counted before" in words(intensity_profiles(only_after, cohorts))


def test_numbers_on_the_logarithmic_axis_are_plain_and_do_not_overlap():
    for low, high in ((60, 550), (20, 40), (1, 30_000)):
        bins = np.geomspace(low, high, 300)
        table = pd.DataFrame({"stage": "before", "start": bins, "width": (high - low) / 3000, "count": 10})
        figure = intensity_profiles({"north": table})
        figure.canvas.draw()
        axes = figure.axes[0]
        labels = [label for label in axes.get_xticklabels(which="both") if label.get_text()]
        inside = [label for label in labels if axes.get_xlim()[0] <= label.get_position()[0] <= axes.get_xlim()[1]]
        boxes = sorted((label.get_window_extent() for label in inside), key=lambda box: box.x0)
        assert inside
        assert all("10^" not in label.get_text() for label in inside)
        assert all(left.x1 <= right.x0 for left, right in zip(boxes, boxes[1:]))


def test_the_axis_after_normalization_is_that_of_the_normalization():
    table = pd.DataFrame({"stage": "after", "start": [0.2, 0.4], "width": 0.01, "count": [5, 5]})
    unit = {
        name: intensity_profiles({"n": table}, intensity=name).axes[1].get_xlabel()
        for name in ("zscore", "minmax", "none")
    }
    assert unit["zscore"] == "intensity (z)"
    assert "0.1st to 99.9th percentile" in unit["minmax"]
    assert "scanner units" in unit["none"]


def test_every_method_of_the_registry_has_its_own_unit_on_the_axis():
    assert set(NORMALIZED) == set(registry.names("intensity"))
    table = pd.DataFrame({"stage": "after", "start": [0.2, 0.4], "width": 0.01, "count": [5, 5]})
    for name in NORMALIZED:
        figure = intensity_profiles({"n": table}, intensity=name)
        figure.draw_without_rendering()
        box = figure.axes[1].xaxis.label.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
