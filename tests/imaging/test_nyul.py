import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbrain.imaging.nyul import ENDS, PERCENTILES, landmarks, mean_landmarks, normalized, shared_scale, standardized
from fedbrain.imaging.reading import ScanFailure


def head(seed, gamma=1.0, scale=200.0, size=20):
    """A ball of three tissues as a scanner with a contrast and a scale of its own shows it, and its mask."""
    rng = np.random.default_rng(seed)
    radius = np.sqrt(((np.indices((size,) * 3) - size / 2) ** 2).sum(0))
    tissue = np.select([radius < 4, radius < 7, radius < 9], [1.0, 0.65, 0.25], 0.0)
    mask = tissue > 0
    noisy = np.clip(tissue + rng.normal(0, 0.04, tissue.shape), 0.01, None)
    return np.where(mask, scale * noisy**gamma, 0).astype(np.float32), mask


def test_the_percentiles_are_those_of_the_papers():
    assert PERCENTILES == (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)


def test_landmarks_of_numbers_one_can_count():
    values = np.arange(101, dtype=np.float32).reshape(101, 1, 1)
    assert landmarks(values, np.ones_like(values, bool)) == list(PERCENTILES)


def test_a_scale_of_two_scans_by_hand():
    straight = list(np.linspace(0, 10, 11))
    bent = [0, *[10.0] * 9, 20]  # half of its range at every inner landmark
    low, high = ENDS
    middle = mean_landmarks([straight, bent])
    np.testing.assert_allclose(middle[0], low)
    np.testing.assert_allclose(middle[-1], high)
    np.testing.assert_allclose(middle[2], low + (high - low) * (0.2 + 0.5) / 2)


def test_a_scale_forgets_the_scanners_scale_and_offset():
    found = [landmarks(*head(seed)) for seed in range(3)]
    other = [list(7.5 * np.array(one) + 30) for one in found]
    np.testing.assert_allclose(mean_landmarks(found), mean_landmarks(other), rtol=1e-12)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_what_clients_share_is_the_scale_of_all_their_scans_together(sizes, seed):
    rng = np.random.default_rng(seed)
    clients = [np.cumsum(rng.uniform(0.1, 5, (size, 11)), axis=1) for size in sizes]
    shared = shared_scale([mean_landmarks(client) for client in clients], sizes)
    np.testing.assert_allclose(shared, mean_landmarks(np.concatenate(clients)), rtol=1e-12)


def test_a_client_without_training_scans_has_no_say():
    scale = mean_landmarks([landmarks(*head(1))])
    np.testing.assert_allclose(shared_scale([scale, [0.0] * 11], [3, 0]), scale)
    with pytest.raises(ValueError, match="no client"):
        shared_scale([scale], [0])
    with pytest.raises(ValueError, match="no scan"):
        mean_landmarks([])


def test_landmarks_land_on_the_scale_and_the_order_of_voxels_stays():
    values, mask = head(2, gamma=0.7)
    found, scale = landmarks(values, mask), mean_landmarks([landmarks(*head(seed)) for seed in (5, 6)])
    np.testing.assert_allclose(standardized(np.array(found), found, scale), scale)
    beyond = standardized(np.array([found[-1] + 2 * (found[-1] - found[-2])]), found, scale)
    np.testing.assert_allclose(beyond, scale[-1] + 2 * (scale[-1] - scale[-2]))
    brain = np.sort(values[mask])
    assert (np.diff(standardized(brain, found, scale)) >= 0).all()


def test_two_contrasts_of_one_head_come_together():
    tissue_of = [head(3, gamma, scale) for gamma, scale in ((1.0, 200.0), (0.7, 900.0))]
    scale = mean_landmarks([landmarks(*one) for one in tissue_of])
    first, second = (normalized(values, mask, landmarks(values, mask), scale) for values, mask in tissue_of)
    apart = np.abs(first - second)[tissue_of[0][1]].mean()
    plain = [(values - values[mask].mean()) / values[mask].std() for values, mask in tissue_of]
    assert apart < 0.1 * np.abs(plain[0] - plain[1])[tissue_of[0][1]].mean()


def test_the_last_step_is_the_encoders_z_score_with_one_background_that_no_brain_voxel_is_under():
    values, mask = head(4)
    scale = mean_landmarks([landmarks(*head(seed)) for seed in (5, 6)])
    result = normalized(values, mask, landmarks(values, mask), scale)
    assert result.dtype == np.float32
    assert len(np.unique(result[~mask])) == 1
    assert result.min() == result[~mask][0]
    counted = result[result > result.min()].astype(np.float64)
    np.testing.assert_allclose([counted.mean(), counted.std(ddof=1)], [0, 1], atol=1e-5)


def test_as_the_package_intensity_normalization_maps():
    package = pytest.importorskip("intensity_normalization.normalizers.population.nyul")
    from intensity_normalization.adapters.images import NumpyImageAdapter

    training, test = [head(seed, gamma) for seed, gamma in ((7, 1.0), (8, 0.8), (9, 1.2))], head(10, 0.9)
    other = package.NyulNormalizer(output_min_value=ENDS[0], output_max_value=ENDS[1])
    images = [[NumpyImageAdapter(part) for part in pair] for pair in zip(*training)]
    other.fit_population(*images)
    scale = mean_landmarks([landmarks(*one) for one in training])
    np.testing.assert_allclose(scale, other.standard_scale, rtol=1e-5)
    values, mask = test
    expected = other.transform(NumpyImageAdapter(values), NumpyImageAdapter(mask)).get_data()
    found = standardized(values[mask], landmarks(values, mask), scale)
    np.testing.assert_allclose(found, expected[mask], atol=0.01)  # of a scale to 100; the package maps in float32


def test_a_brain_with_a_plateau_and_an_empty_one_are_refused():
    values, mask = head(1)
    with pytest.raises(ScanFailure, match="one single intensity"):
        landmarks(np.minimum(values, np.float32(60)), mask)
    with pytest.raises(ScanFailure, match="empty"):
        landmarks(values, np.zeros_like(mask))
