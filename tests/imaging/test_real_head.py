"""Real heads: one through all steps, six against the reference masks of three other networks."""

import json

import nibabel
import numpy as np
import pandas as pd

from fedbrain import registry
from fedbrain.imaging import layout, reading
from fedbrain.imaging.quality import dice
from fedbrain.imaging.registration import GRID_AFFINE, resample
from fedbrain.imaging.shard import RECIPE_DEFAULTS, preprocess_shard
from fedbrain.tables import MANIFEST


def test_a_real_head_is_found_laid_on_the_template_and_repeatable(real_heads, tmp_path):
    head = real_heads / "heads" / "ds000011-sub04_T1w.nii.gz"
    row = {"scan": "sub-04", "subject": "04", "session": None, "path": str(head), "mask": None, "fingerprint": "f"}
    scans = pd.DataFrame([row], columns=list(MANIFEST)).astype(MANIFEST)
    once, _ = preprocess_shard(scans, tmp_path / "once", {}, cohort="real")
    again, _ = preprocess_shard(scans, tmp_path / "again", {}, cohort="real")
    assert list(once["status"]) == ["ok"], once["reason"][0]

    for path in (layout.volume_path, layout.mask_path):
        assert path(tmp_path / "once", "sub-04").read_bytes() == path(tmp_path / "again", "sub-04").read_bytes()

    quality = once.iloc[0]
    assert quality["mask_dice"] >= 0.93
    assert quality["template_correlation"] >= 0.55
    assert 1000 < quality["brain_volume_ml"] < 1900
    assert quality["registration_similarity"] >= 0.08
    assert quality["head_rotation_degrees"] < 45
    assert quality["header_conflict"] == 0

    # The reference mask, sent through the transform on record, must lie where the brain lies.
    record = json.loads(layout.sidecar_path(tmp_path / "once", "sub-04").read_text())
    parameters = {step["name"]: step["parameters"] for step in record["steps"]}
    reference = nibabel.load(real_heads / "brain_masks" / "ds000011-sub04_brainmask.nii.gz")
    voxel_map = np.linalg.inv(reference.affine) @ np.array(parameters["registration"]["mni_to_scanner"]) @ GRID_AFFINE
    expected = resample(reference.get_fdata(dtype=np.float32), voxel_map) >= 0.5
    found = nibabel.load(layout.mask_path(tmp_path / "once", "sub-04")).get_fdata() > 0
    assert dice(found, expected) >= 0.95


def test_the_default_extractor_agrees_with_three_other_networks_on_six_heads(real_heads):
    agreement = {}
    for path in sorted((real_heads / "brain_masks").glob("*_brainmask.nii.gz")):
        name = path.name.removesuffix("_brainmask.nii.gz")
        scan = reading.decode(reading.read_source(real_heads / "heads" / f"{name}_T1w.nii.gz"))
        reference = reading.decode(reading.read_source(path)).values > 0.5
        extract = registry.lookup("brain_extractor", RECIPE_DEFAULTS["extractor"])
        agreement[name] = dice(extract(scan, None).brain, reference)  # on the scan's own grid
    assert len(agreement) == 6
    assert min(agreement.values()) >= 0.92, agreement
    assert np.mean(list(agreement.values())) >= 0.95, agreement
