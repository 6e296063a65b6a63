import numpy as np
import pytest
from deepbet.bet import BrainExtraction

from fedbrain import registry
from fedbrain.imaging import brain_extraction
from fedbrain.imaging.extractor_cards import CARDS
from fedbrain.imaging.extractors import deepbet as deepbet_module
from fedbrain.imaging.extractors.deepbet import deepbet
from fedbrain.imaging.extractors.provided import provided
from fedbrain.imaging.reading import Scan, ScanFailure


def scan_of(values, affine=None):
    return Scan(np.asarray(values, np.float32), np.diag([8.0, 8, 8, 1]) if affine is None else affine)


@pytest.fixture
def head():
    return scan_of(np.random.default_rng(0).random((20, 20, 20)))


def test_every_extractor_has_a_card_and_no_card_is_without_its_extractor():
    assert sorted(CARDS) == sorted(registry.names("brain_extractor"))


def test_a_provided_mask_is_taken_whatever_its_foreground_is_called(head):
    inside = np.zeros((20, 20, 20))
    inside[4:16, 4:16, 4:16] = 1
    np.testing.assert_array_equal(provided(head, scan_of(inside)).brain, inside > 0)
    np.testing.assert_array_equal(provided(head, scan_of(255 * inside)).brain, inside > 0)


def test_a_mask_that_is_missing_or_on_another_grid_or_a_speck_is_refused(head):
    inside = np.ones((20, 20, 20))
    with pytest.raises(ScanFailure, match="fill its column mask"):
        provided(head, None)
    with pytest.raises(ScanFailure, match="resample"):
        provided(head, scan_of(inside[:-1]))
    moved = np.diag([8.0, 8, 8, 1])
    moved[0, 3] = 8
    with pytest.raises(ScanFailure, match="resample"):
        provided(head, scan_of(inside, moved))
    speck = np.zeros((20, 20, 20))
    speck[5, 5, 5] = 1
    with pytest.raises(ScanFailure, match="1 ml only"):
        provided(head, scan_of(speck))


def test_the_largest_component_is_kept_its_holes_are_filled_and_both_are_told(head):
    marked = np.zeros((20, 20, 20), bool)
    marked[2:14, 2:14, 2:14] = True  # 1,728 voxels of 0.512 ml
    marked[7, 7, 7] = marked[7, 7, 8] = False
    marked[16:19, 16:19, 16:19] = True
    brain, facts = brain_extraction.cleaned(marked, head, "it finds")
    expected = np.zeros_like(marked)
    expected[2:14, 2:14, 2:14] = True
    np.testing.assert_array_equal(brain, expected)
    assert facts == {"components": 2, "removed_ml": pytest.approx(27 * 0.512), "filled_ml": pytest.approx(2 * 0.512)}


class OneSidedNetwork:
    """Marks what it is told, and works in place as deepbet's does; what follows the networks is deepbet's own."""

    def __init__(self, marked):
        self.marked = marked

    def run_model(self, values):
        values[:] = self.marked
        self.bbox = (slice(None),) * 3
        return values

    def postprocess(self, mask):
        return BrainExtraction.postprocess(self, mask)


def test_networks_that_mark_nothing_are_a_reason_and_the_scan_stays_as_it_was(head, monkeypatch):
    before = head.values.copy()
    monkeypatch.setattr(deepbet_module, "_networks", lambda device: OneSidedNetwork(0))
    with pytest.raises(ScanFailure, match="deepbet finds no brain"):
        deepbet(head, None)
    np.testing.assert_array_equal(head.values, before)


def test_what_deepbet_cleans_away_is_told(head, monkeypatch):
    marked = np.zeros((20, 20, 20), np.float32)
    marked[2:14, 2:14, 2:14] = 0.9
    marked[7, 7, 7] = 0.1
    marked[16:19, 16:19, 16:19] = 0.9
    monkeypatch.setattr(deepbet_module, "_networks", lambda device: OneSidedNetwork(marked))
    brain, facts = deepbet(head, None)
    assert np.count_nonzero(brain) == 12**3
    assert facts == {"components": 2, "removed_ml": pytest.approx(27 * 0.512), "filled_ml": pytest.approx(0.512)}
