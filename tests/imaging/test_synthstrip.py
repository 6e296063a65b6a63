"""SynthStrip with random weights in the published layout; there are no trained ones here."""

import nibabel
import numpy as np
import pytest
import torch

from fedbrain.errors import StudyError
from fedbrain.imaging import brain_extraction
from fedbrain.imaging.extractors import synthstrip as module
from fedbrain.imaging.reading import Scan, ScanFailure
from fedbrain.provenance import sha256_of

model = pytest.importorskip("nipreps.synthstrip.model", reason="fedbrain[synthstrip] is not installed")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "SIDES", (64, 128))
    for cached in (brain_extraction.checked_weights, module._network):
        cached.cache_clear()


@pytest.fixture
def head():
    """A ball of 30 mm radius in a box of 60 x 58 x 62 mm, obliquely placed."""
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = [-20, 5, 40]
    place = np.linalg.norm((np.indices((30, 29, 31)).T * 2 - [30, 29, 31]).T, axis=0)
    return Scan(np.where(place < 30, 100, 3).astype(np.float32), affine)


def saved(path, network, **more):
    torch.save({"model_state_dict": network.state_dict()} | more, path)
    return {"weights": str(path), "sha256": sha256_of(path)}


def test_the_published_layout_runs_and_the_mask_is_where_the_network_says(head, tmp_path):
    torch.manual_seed(0)
    network = model.StripModel()
    with torch.no_grad():  # the last layer gives -5 mm where its input says so: here everywhere
        network.remaining[-1].conv.weight.zero_()
        network.remaining[-1].conv.bias.fill_(-5.0)
    brain, facts = module.synthstrip(head, None, options=saved(tmp_path / "w.pt", network))
    assert brain.all()  # the box of 64 mm holds the whole scan
    assert facts == {"components": 1, "removed_ml": 0.0, "filled_ml": 0.0}

    with torch.no_grad():
        network.remaining[-1].conv.bias.fill_(1.0)  # the border itself is outside
    module._network.cache_clear()
    with pytest.raises(ScanFailure, match="SynthStrip finds a brain of 0 ml"):
        module.synthstrip(head, None, options=saved(tmp_path / "v.pt", network))


def test_a_distance_is_brought_back_to_where_it_was(head, tmp_path, monkeypatch):
    class Threshold(torch.nn.Module):
        """As far inside as the image is bright."""

        def forward(self, image):
            return 8.0 - 16.0 * image

    monkeypatch.setattr(module, "_network", lambda path, device: Threshold())
    brain, _ = module.synthstrip(head, None, options=saved(tmp_path / "w.pt", model.StripModel()))
    assert np.count_nonzero(brain ^ (head.values > 50)) < 0.01 * brain.sum()  # the rim is interpolated twice


def test_the_grid_is_that_of_the_authors_tool(monkeypatch):
    from nipreps.synthstrip.cli import conform

    monkeypatch.setattr(module, "SIDES", (192, 256, 320))
    affine = np.array([[1.2, 0, 0, -90], [0, 0.9, 0.1, -120], [0, -0.1, 1.0, -80], [0, 0, 0, 1]])
    values = np.zeros((170, 230, 200), np.float32)
    expected = conform(nibabel.Nifti1Image(values, affine))
    shape, grid = module._grid(Scan(values, affine))
    assert shape == expected.shape
    np.testing.assert_allclose(grid[:3, :3], expected.affine[:3, :3], atol=1e-9)
    np.testing.assert_allclose(grid[:3, 3], expected.affine[:3, 3], atol=1e-6)


def test_another_file_or_layout_is_refused_with_the_origin(head, tmp_path):
    network = model.StripModel()
    torch.save(network.state_dict(), tmp_path / "flat.pt")
    saved(tmp_path / "masks.pt", model.StripModel(return_mask=True))
    (tmp_path / "page.pt").write_bytes(b"<html>")
    for name in ("flat.pt", "masks.pt", "page.pt"):
        options = {"weights": str(tmp_path / name), "sha256": sha256_of(tmp_path / name)}
        with pytest.raises(StudyError, match=r"is not synthstrip.1.pt .*surfer.nmr.mgh.harvard.edu"):
            module.synthstrip(head, None, options=options)


class Runs:
    """Pickles as a call of a function."""

    def __reduce__(self):
        return print, ("this must not run",)


def test_a_file_that_would_run_code_is_refused_unrun(head, tmp_path, capsys):
    options = saved(tmp_path / "evil.pt", model.StripModel(), extra=Runs())
    with pytest.raises(StudyError, match="is not synthstrip.1.pt"):
        module.synthstrip(head, None, options=options)
    assert "must not run" not in capsys.readouterr().out
