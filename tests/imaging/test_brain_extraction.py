import numpy as np
import pytest
from deepbet.bet import BrainExtraction

from fedbrain.imaging import brain_extraction
from fedbrain.imaging.brain_extraction import deepbet, provided
from fedbrain.imaging.reading import Scan, ScanFailure


def scan_of(values, affine=None):
    return Scan(np.asarray(values, np.float32), np.diag([8.0, 8, 8, 1]) if affine is None else affine)


@pytest.fixture
def head():
    return scan_of(np.random.default_rng(0).random((20, 20, 20)))


def test_a_provided_mask_is_taken_whatever_its_foreground_is_called(head):
    inside = np.zeros((20, 20, 20))
    inside[4:16, 4:16, 4:16] = 1
    np.testing.assert_array_equal(provided(head, scan_of(inside)), inside > 0)
    np.testing.assert_array_equal(provided(head, scan_of(255 * inside)), inside > 0)


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


class BlindNetwork:
    """Marks nothing, and works in place as deepbet's does; what follows the networks is deepbet's own."""

    def run_model(self, values):
        values[:] = 0
        self.bbox = (slice(None),) * 3
        return values

    def postprocess(self, mask):
        return BrainExtraction.postprocess(self, mask)


def test_networks_that_mark_nothing_are_a_reason_and_the_scan_stays_as_it_was(head, monkeypatch):
    before = head.values.copy()
    monkeypatch.setattr(brain_extraction, "_deepbet", lambda device: BlindNetwork())
    with pytest.raises(ScanFailure, match="deepbet finds no brain"):
        deepbet(head, None)
    np.testing.assert_array_equal(head.values, before)
