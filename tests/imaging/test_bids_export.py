"""The exported data set is what the BIDS validator accepts, and has the volumes and facts that were put in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from fedbrain import registry
from fedbrain.errors import StudyError
from fedbrain.imaging import bids_export, derivatives, histogram, layout, nyul, registration, standardize
from fedbrain.imaging.bids_export import export_cohort
from fedbrain.tables import SCANS, VOLUMES, read_table

SCAN_ROWS = [  # subject, session, age, sex, diagnosis, site
    ("01", None, 71.5, "F", "CN", "x"),
    ("02", "M00", 80.0, "M", "CN", None),
    ("02", "M12", 81.0, "M", "AD", None),
    ("03", None, None, None, "AD", None),
]


@pytest.fixture
def exported(tmp_path):
    """Four scans in two shards, one of them failed, exported twice."""
    raw = tmp_path / "raw"
    rows = []
    for subject, session, age, sex, diagnosis, site in SCAN_ROWS:
        scan = f"sub-{subject}" + (f"_ses-{session}" if session else "")
        path = raw / f"sub-{subject}" / (f"ses-{session}" if session else "") / f"anat/{scan}_T1w.nii.gz"
        facts = {"age": age, "sex": sex, "diagnosis": diagnosis, "site": site}
        rows.append({"scan": scan, "subject": subject, "session": session, "path": str(path)} | facts)
    scans = pd.DataFrame(rows).reindex(columns=list(SCANS)).astype(SCANS)
    volumes = {}
    for shard, part in (("0", scans.iloc[:3]), ("4", scans.iloc[3:])):
        folder = tmp_path / "volumes" / shard
        folder.mkdir(parents=True)
        table = part.reindex(columns=list(VOLUMES)).assign(status="ok").astype(VOLUMES)
        table.loc[table["scan"] == "sub-03", "status"] = "failed"
        for scan in table.loc[table["status"] == "ok", "scan"]:
            for path, kind in (
                (layout.volume_path(folder, scan), np.float32),
                (layout.mask_path(folder, scan), np.uint8),
            ):
                image = nibabel.Nifti1Image(np.zeros((128, 128, 128), kind), registration.GRID_AFFINE)
                image.header.set_xyzt_units("mm")
                nibabel.save(image, path)
            record = {
                "method": {"recipe": {"intensity": "encoder"}},
                "steps": [{"name": "reading"}],
                "quality": {"cjv": 0.4},
            }
            layout.sidecar_path(folder, scan).write_text(json.dumps(record | {"key": "k"}))
        volumes[folder] = table
    for _ in range(2):  # what is there already is replaced
        export_cohort(tmp_path / "set", scans, volumes, cohort="north", title="Small study", raw=raw)
    return tmp_path / "set"


def validate(folder: Path) -> list[dict]:
    """The issues that bids-validator-deno finds."""
    pytest.importorskip("bids_validator_deno", reason="bids-validator-deno is not installed: pip install -e '.[test]'")
    program = Path(sys.executable).with_name("bids-validator-deno")
    environment = os.environ | {"DENO_DIR": str(folder.parent / "deno"), "NO_COLOR": "1"}
    command = [program, "--format", "json", folder]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if not done.stdout.lstrip().startswith("{"):
        pytest.skip(f"the BIDS validator does not run here: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)["issues"]["issues"]


def test_the_bids_validator_finds_no_error(exported):
    issues = validate(exported)
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    # and it does look: a volume of an unknown name is one
    (exported / "sub-01/anat/sub-01_brain.nii.gz").write_bytes(b"x")
    assert any(issue["severity"] == "error" for issue in validate(exported))


def test_a_volume_on_a_standard_scale_is_exported_with_its_steps(tmp_path):
    ball = ((np.indices(registration.GRID_SHAPE) - 64) ** 2).sum(0) < 12**2
    values = np.where(ball, 300 * np.random.default_rng(0).beta(3, 2, ball.shape), 0).astype(np.float32)
    landmarks = nyul.landmarks(values, ball)
    record = {
        "steps": [{"name": "intensity", "parameters": {"method": "nyul", "landmarks": landmarks}}],
        "seconds": 1.0,
        "key": "k",
        "method": {"recipe": {"intensity": "nyul"}},
        "quality": {"cjv": 0.4},
        "histograms": {"before": histogram.packed(histogram.scan_histogram(values[ball]))},
    }
    source, folder = tmp_path / "volumes", tmp_path / "standardized"
    source.mkdir()
    derivatives.write(source, "sub-01", values, ball, record)
    row = {"scan": "sub-01", "subject": "01", "status": "ok", "key": "k", "reused": 0, "seconds": 1.0}
    table = pd.DataFrame([row]).reindex(columns=list(VOLUMES)).astype(VOLUMES)
    table, _ = standardize.standardize_shard(table, source, folder, {"scale": landmarks}, cohort="c")
    scans = pd.DataFrame([{"scan": "sub-01", "subject": "01"}]).reindex(columns=list(SCANS)).astype(SCANS)
    export_cohort(tmp_path / "set", scans, {folder: table}, cohort="north", title="Small study")
    sidecar = json.loads(layout.sidecar_path(tmp_path / "set/sub-01/anat", "sub-01").read_text())
    assert sidecar["Intensities"] == bids_export.INTENSITIES["nyul"]
    assert [step["name"] for step in sidecar["fedbrain"]["steps"]] == ["intensity", "standardization"]


def test_the_values_of_every_normalization_are_described():
    assert set(bids_export.INTENSITIES) == set(registry.names("intensity"))


@pytest.mark.parametrize("suffix", ["volume", "sidecar"])
def test_a_missing_file_names_the_row_and_leaves_the_earlier_data_set(tmp_path, exported, suffix):
    folder = tmp_path / "volumes/0"
    (folder / f"sub-01{layout.SUFFIXES[suffix]}").unlink()
    scans = pd.DataFrame([{"scan": "sub-01", "subject": "01"}]).reindex(columns=list(SCANS)).astype(SCANS)
    table = scans.reindex(columns=list(VOLUMES)).assign(status="ok").astype(VOLUMES)
    with pytest.raises(StudyError, match=r"cohort north, line 2 of .*volumes/0.tsv: its volume is missing") as told:
        export_cohort(exported, scans, {folder: table}, cohort="north", title="Small study")
    assert "sub-01" not in str(told.value)
    assert (exported / "sub-02").is_dir()
    assert not (tmp_path / ".set.making").exists()


def test_a_disk_that_fails_names_no_subject(tmp_path, exported, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(bids_export.os, "link", full)
    monkeypatch.setattr(bids_export.shutil, "copy2", full)
    scans = pd.DataFrame([{"scan": "sub-01", "subject": "01"}]).reindex(columns=list(SCANS)).astype(SCANS)
    table = scans.reindex(columns=list(VOLUMES)).assign(status="ok").astype(VOLUMES)
    with pytest.raises(OSError, match="No space left") as told:
        export_cohort(exported, scans, {tmp_path / "volumes/0": table}, cohort="north", title="Small study")
    assert told.value.filename == str(exported)
    assert (exported / "sub-01").is_dir()


def test_files_are_those_of_the_shards_and_facts_those_of_the_tables(exported):
    name = "sub-02_ses-M12_space-MNI152NLin2009aSym_res-1p5_desc-preproc_T1w"
    volume = exported / "sub-02/ses-M12/anat" / f"{name}.nii.gz"
    assert volume.samefile(exported.parent / "volumes/0" / volume.name)  # a link, no copy
    assert sorted(path.name for path in exported.glob("sub-*")) == ["sub-01", "sub-02"]  # 03 failed
    sidecar = json.loads(volume.with_name(f"{name}.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-02/ses-M12/anat/sub-02_ses-M12_T1w.nii.gz"]
    assert sidecar["SkullStripped"] is True
    assert sidecar["fedbrain"]["quality"] == {"cjv": 0.4}
    people = read_table(exported / "participants.tsv", {"participant_id": "string", "age": "Float64"})
    assert people["age"].fillna(-1).tolist() == [71.5, -1]
    assert people["sex"].tolist() == ["F", "M"]
    visits = read_table(exported / "sub-02/sub-02_sessions.tsv", {"session_id": "string"})
    assert visits["diagnosis"].tolist() == ["CN", "AD"]
    assert visits["age"].tolist() == [80, 81]
    description = json.loads((exported / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["DatasetLinks"]["raw"] == (exported.parent / "raw").as_uri()
