"""A cohort of DICOM folders: its conversion is a stage before preprocessing, and only where there are such folders."""

import sys

import pandas as pd
import pytest
from small_study import CONFIG, fresh_checkout

from fedbrain.tables import CONVERSIONS, read_table

pytest.importorskip("dcm2niix", reason="dcm2niix is not installed: pip install 'fedbrain[dicom]'")


@pytest.fixture
def checkout(root, tmp_path, monkeypatch):
    """Two cohorts, one with two whole DICOM series, one with gaps, and a NIfTI file."""
    monkeypatch.syspath_prepend(root / "tests/cohorts")
    from dicom_series import AXIAL, voxels, write_series

    study = fresh_checkout(root, tmp_path / "checkout")
    folder = study.folder / "data/delta"
    for number in (1, 2, 3):
        paths = write_series(folder / f"exam{number}", voxels(number), AXIAL)
    paths[20].unlink()
    (folder / "d4.nii.gz").write_bytes(b"never read here")
    rows = [(f"d{n}", f"exam{n}", None, "AD" if n == 1 else "CN") for n in (1, 2, 3)] + [
        ("d4", None, "d4.nii.gz", "AD")
    ]
    table = pd.DataFrame(rows, columns=["subject", "dicom", "path", "diagnosis"])
    table.to_csv(folder / "scans.tsv", sep="\t", index=False, na_rep="n/a")
    delta = {"table": "data/delta/scans.tsv", "t1w": {"series": ["*mprage*"]}}
    study.write_config(CONFIG | {"cohorts": {"delta": delta, "gamma": CONFIG["cohorts"]["gamma"]}})
    yield study
    sys.modules.pop("dicom_series")


def test_folders_are_converted_once_and_before_preprocessing(checkout):
    planned = checkout.planned()
    assert planned["convert_dicom"] == 1  # the phantoms have nothing to convert
    assert planned["preprocess_shard"] == 2
    checkout.snakemake("results/nifti/delta/0.tsv")
    table = read_table(checkout.folder / "results/nifti/delta/0.tsv", CONVERSIONS).set_index("scan")
    assert table["status"].to_dict() == {"sub-d1": "ok", "sub-d2": "ok", "sub-d3": "failed"}
    assert "missing or unevenly spaced" in table.loc["sub-d3", "reason"]
    manifest = pd.read_csv(checkout.folder / "results/cohorts/delta/shards/0.tsv", sep="\t").set_index("scan")
    assert all((checkout.folder / manifest.loc[scan, "path"]).is_file() for scan in ("sub-d1", "sub-d2"))
    log = (checkout.folder / "results/logs/convert_dicom/delta-0.log").read_text()
    assert not any(name in log for name in ("d1", "exam1", "DOE"))
    for path in (checkout.folder / "data/delta").glob("exam*/*"):
        path.touch()
    assert checkout.planned()["convert_dicom"] == 0
    (checkout.folder / "data/delta/exam2/more.txt").write_text("another file")
    assert checkout.planned()["convert_dicom"] == 1


def test_the_export_is_asked_for_by_name(checkout):
    planned = checkout.planned("derivatives")
    assert planned["export_derivatives"] == 2
    assert "export_derivatives" not in checkout.planned()
