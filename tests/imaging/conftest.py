from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import settings

from fedbrain.devices import set_threads

settings.register_profile("no_deadline", deadline=None)  # no test here asserts a time
settings.load_profile("no_deadline")
set_threads(1)  # before any test imports antspyx: one ITK thread is what makes registration repeatable

HEADS = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def real_heads():
    """A folder with ``heads`` and ``brain_masks``; real data that the project does not carry."""
    if not (HEADS / "heads").is_dir():
        pytest.skip("no real heads in ../shared/data beside this checkout")
    return HEADS


@pytest.fixture
def write_head(tmp_path):
    """Writes a small volume, by default a bright ball in a 24 x 26 x 28 box of 8 mm voxels, and returns its path."""

    def write(name="head.nii.gz", values=None, affine=None, code=1):
        if values is None:
            position = np.indices((24, 26, 28)) - np.array([12, 13, 14])[:, None, None, None]
            noise = np.random.default_rng(0).normal(0, 3, (24, 26, 28))
            values = np.where((position**2).sum(0) < 81, 100 + position[0] + noise, 5).astype(np.float32)
        image = nibabel.Nifti1Image(values, np.diag([8.0, 8, 8, 1]) if affine is None else affine)
        image.header["sform_code"], image.header["qform_code"] = code, 0
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(image, path)
        return path

    return write
