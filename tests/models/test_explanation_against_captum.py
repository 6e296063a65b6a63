"""Integrated gradients and occlusion against captum's, on a small transformer. Skipped where captum is not installed."""

import pytest

from fedbrain.devices import FittingBatch
from fedbrain.models.explanation import integrated_gradients, occlusion, reference_of
from tiny_encoder import tiny_model, volume

captum = pytest.importorskip("captum.attr")


@pytest.fixture(scope="module")
def parts():
    scan = volume()
    return tiny_model("volume"), scan, reference_of(scan, "mean")


def test_integrated_gradients_are_those_of_captum(parts):
    model, scan, reference = parts
    ours = integrated_gradients(model, scan, reference, steps=8, fitting=FittingBatch(4))
    batch = {"n_steps": 8, "method": "gausslegendre", "internal_batch_size": 4}
    theirs = captum.IntegratedGradients(model).attribute(scan[None, None], reference[None, None], **batch)[0, 0]
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("stride", [64, 32], ids=["side by side", "overlapping"])
def test_occlusion_is_that_of_captum(parts, stride):
    model, scan, reference = parts
    ours = occlusion(model, scan, reference, block=64, stride=stride)
    windows = {"sliding_window_shapes": (1, 64, 64, 64), "strides": (1, stride, stride, stride)}
    theirs = captum.Occlusion(model).attribute(scan[None, None], baselines=reference[None, None], **windows)[0, 0]
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
