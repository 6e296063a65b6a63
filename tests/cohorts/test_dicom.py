"""DICOM folders: voxels and their place are right, the right series is taken, and no name travels."""

import gzip
import json
import logging
import os
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from dicom_series import AXIAL, IDENTITY, SAGITTAL, TILTED, voxels, write_series

from fedbrain.cohorts import dicom, index
from fedbrain.errors import StudyError
from fedbrain.imaging import reading
from fedbrain.imaging.conversions import with_refused
from fedbrain.shard_folders import held
from fedbrain.study.config import checked
from fedbrain.tables import CONVERSIONS, DICOM, MANIFEST, VOLUMES, read_table, write_table

pytest.importorskip("dcm2niix", reason="dcm2niix is not installed: pip install 'fedbrain[dicom]'")
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])
FIRST = {"choose": "first"}


@pytest.fixture
def convert(tmp_path):
    """Converts folders below in/ as a shard; gives the rows by scan."""

    def call(*names, t1w=FIRST):
        rows = [(f"sub-{name}", str(tmp_path / "in" / name), f"print {name}") for name in names]
        table = dicom.convert_shard(pd.DataFrame(rows, columns=list(DICOM)), tmp_path / "out", t1w, cohort="a")
        return {row["scan"].removeprefix("sub-"): row for row in table.to_dict("records")}

    return call


def image(tmp_path, name):
    return dicom.nifti_path(tmp_path / "out", f"sub-{name}")


@pytest.mark.parametrize("voxel_to_lps", [AXIAL, SAGITTAL, TILTED], ids=["axial", "sagittal", "tilted"])
def test_every_voxel_keeps_its_value_and_its_place(tmp_path, convert, voxel_to_lps):
    values = voxels()
    write_series(tmp_path / "in/x", values, voxel_to_lps)
    assert convert("x")["x"]["status"] == "ok"
    scan = reading.decode(reading.read_source(image(tmp_path, "x")))  # as preprocessing reads it
    ours = np.linalg.inv(scan.affine) @ LPS_TO_RAS @ voxel_to_lps  # from a voxel of the series to one of the scan
    i, j, k = np.indices(values.shape).reshape(3, -1)
    places = ours @ np.stack([i, j, k, np.ones_like(i)])
    assert np.abs(places - np.rint(places)).max() < 1e-3
    x, y, z = np.rint(places[:3]).astype(int)
    assert np.array_equal(scan.values[x, y, z], values[i, j, k])
    assert scan.values.size == values.size


def test_what_is_told_of_a_scan_names_nobody(tmp_path, convert, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    write_series(tmp_path / "in/x", voxels(), AXIAL, ImageComments="scan of DOE JANE")
    write_series(tmp_path / "in/y", voxels(), AXIAL)[7].write_bytes(b"cut")
    rows = convert("x", "y")
    header = gzip.decompress(Path(image(tmp_path, "x")).read_bytes())[:352]
    sidecar = Path(image(tmp_path, "x").replace(".nii.gz", ".json")).read_text()
    told = " ".join([str(rows), sidecar, header.decode("latin-1"), caplog.text, *capfd.readouterr()])
    for word in [*IDENTITY.values(), "DOE", "JANE", "HOUSE", "Mercy", "SMITH", "10:11:12"]:
        assert word not in told
    assert json.loads(sidecar)["EchoTime"] == pytest.approx(0.00298)
    assert (rows["x"]["field_strength"], rows["x"]["scanner"]) == (3, "Siemens Prisma")
    assert rows["x"]["series"] == "2 T1 MPRAGE"


def exam(folder):
    """A localizer of two directions, two MPRAGEs and a FLAIR."""
    for direction in (AXIAL, SAGITTAL):
        few = voxels(9, (64, 64, 3))
        write_series(folder, few, direction @ np.diag([1, 1, 10, 1]), number=1, description="localizer")
    for number, description in ((3, "T2 FLAIR"), (10, "t1_MPRAGE_sag"), (4, "t1_MPRAGE_sag")):
        write_series(folder, voxels(number), SAGITTAL, number=number, description=description)


@pytest.mark.parametrize(
    ("t1w", "taken"),
    [
        ({"series": ["*mprage*"], "choose": "first"}, 4),
        ({"series": ["*mprage*"], "choose": "last"}, 10),
        ({"series": ["*spgr*", "t2 flair"], "choose": "only"}, 3),
    ],
)
def test_the_series_is_the_one_that_the_config_says(tmp_path, convert, t1w, taken):
    exam(tmp_path / "in/x")
    row = convert("x", t1w=t1w)["x"]
    assert row["status"] == "ok"
    assert row["series"].split()[0] == str(taken)
    others = [f"{n} {what}" for n, what in ((3, "T2 FLAIR"), (4, "t1_MPRAGE_sag"), (10, "t1_MPRAGE_sag")) if n != taken]
    assert row["passed_over"] == "; ".join(others)  # the localizer is no candidate
    assert sorted(np.unique(nibabel.load(image(tmp_path, "x")).dataobj)) == sorted(np.unique(voxels(taken)))


@pytest.mark.parametrize(
    ("t1w", "words"),
    [
        (FIRST, ["3 series in the folder: 3 T2 FLAIR, 4 t1_MPRAGE_sag, 10 t1_MPRAGE_sag", "say in the cohort's t1w.series"]),
        ({"series": ["*spgr*"], "choose": "first"}, ["no series fits t1w.series *spgr*; there are 3 T2 FLAIR, 4"]),
        ({"series": ["*mprage*"], "choose": "only"}, ["2 series fit t1w.series *mprage*: 4 t1_MPRAGE_sag, 10"]),
    ],
)  # fmt: skip
def test_where_the_choice_is_not_clear_the_series_are_listed(tmp_path, convert, t1w, words):
    exam(tmp_path / "in/x")
    row = convert("x", t1w=t1w)["x"]
    assert row["status"] == "failed"
    for word in words:
        assert word in row["reason"]


def test_bad_folders_are_rows_with_a_reason_and_the_others_go_on(tmp_path, convert):
    folder = tmp_path / "in"
    write_series(folder / "whole", voxels(), AXIAL)
    (folder / "whole" / "notes.txt").write_text("no DICOM")
    (folder / "whole" / "DICOMDIR").write_bytes(b"\0" * 200)
    cut = write_series(folder / "cut", voxels(), AXIAL)[20]
    cut.write_bytes(cut.read_bytes()[:3000])
    write_series(folder / "gap", voxels(), AXIAL)[20].unlink()
    (folder / "text").mkdir()
    (folder / "text" / "a.dcm").write_text("no DICOM either")
    (folder / "empty").mkdir()
    write_series(folder / "localizer", voxels(0, (64, 64, 3)), AXIAL, description="localizer")
    write_series(folder / "phase", voxels(), AXIAL, ImageType=["ORIGINAL", "PRIMARY", "P", "PHASE"])
    rows = convert("whole", "cut", "gap", "text", "empty", "localizer", "phase")
    reasons = {name: row["reason"] for name, row in rows.items()}
    assert pd.isna(reasons.pop("whole"))
    assert "File not large enough" in reasons["cut"]
    assert "000021" in reasons["cut"]  # the place among the files, not the name
    assert "slices of series 2 T1 MPRAGE are missing or unevenly spaced" in reasons["gap"]
    assert "Expected 51 images" in reasons["gap"]
    assert reasons["text"] == "no DICOM image among the files of the folder"
    assert reasons["empty"] == "the folder holds no files"
    assert reasons["localizer"] == "no series in the folder is one 3D volume: 2 localizer"
    assert reasons["phase"].startswith("no series in the folder is one 3D volume")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sub-whole_T1w.nii.gz", "sub-whole_T1w.json"}


def test_what_is_made_is_kept_while_files_and_choice_are_the_same(tmp_path, convert):
    exam(tmp_path / "in/x")
    write_series(tmp_path / "in/y", voxels(), AXIAL)
    t1w = {"series": ["*mprage*"], "choose": "first"}
    assert [row["reused"] for row in convert("x", "y", t1w=t1w).values()] == [0, 0]
    first = Path(image(tmp_path, "x")).read_bytes()
    for path in (tmp_path / "in/x").iterdir():
        os.utime(path)
    assert [row["reused"] for row in convert("x", "y", t1w=t1w).values()] == [1, 1]
    assert [row["reused"] for row in convert("x", t1w=t1w | {"choose": "last"}).values()] == [0]
    assert not os.path.exists(image(tmp_path, "y"))  # no longer listed
    assert [row["reused"] for row in convert("x", t1w=t1w).values()] == [0]
    assert Path(image(tmp_path, "x")).read_bytes() == first  # same files, same bytes
    shutil.rmtree(tmp_path / "in/x")
    (tmp_path / "in/x").mkdir()
    convert("x", t1w=t1w)
    assert not os.path.exists(image(tmp_path, "x"))


def test_what_is_no_fault_of_the_files_stops_the_job_without_a_name(tmp_path, convert, monkeypatch):
    write_series(tmp_path / "in/x", voxels(), AXIAL)
    stopped = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(dicom.subprocess, "run", lambda *arguments, **options: stopped)
    with pytest.raises(
        StudyError, match=r"cohort a, line 2 of .*dcm2niix was stopped, perhaps for want of memory"
    ) as error:
        convert("x")
    assert str(tmp_path) not in str(error.value)
    (tmp_path / "out/notes.txt").write_text("somebody's own")
    monkeypatch.undo()
    convert("x")
    assert (tmp_path / "out/notes.txt").is_file()


def test_a_folder_that_is_gone_costs_nothing_that_is_made(tmp_path, convert):
    write_series(tmp_path / "in/x", voxels(), AXIAL)
    convert("x")
    os.rename(tmp_path / "in/x", tmp_path / "unmounted")
    with pytest.raises(StudyError, match="line 2 of the shard's DICOM folders: cannot be read now") as error:
        convert("x")
    assert str(tmp_path) not in str(error.value)
    assert os.path.exists(image(tmp_path, "x"))


@pytest.mark.parametrize("call", ["scandir", "open"])
def test_a_folder_that_may_not_be_read_is_a_row_and_costs_nothing_that_is_made(tmp_path, convert, monkeypatch, call):
    write_series(tmp_path / "in/x", voxels(), AXIAL)
    write_series(tmp_path / "in/y", voxels(), AXIAL)
    convert("x", "y")
    places = {"scandir": (os, "scandir"), "open": (dicom, "sha256_of")}
    original = getattr(*places[call])

    def forbidden(path):
        if str(path).startswith(str(tmp_path / "in/x")):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(*places[call], forbidden)
    rows = convert("x", "y")
    assert rows["x"]["status"] == "failed"
    assert rows["x"]["reason"].startswith("a file or folder of it may not be read; give the account")
    assert rows["y"]["reused"] == 1
    assert os.path.exists(image(tmp_path, "x"))
    monkeypatch.undo()
    assert convert("x", "y")["x"]["reused"] == 1


def test_a_disk_that_fails_under_the_results_is_no_fault_of_the_scan_and_names_nobody(tmp_path, convert, monkeypatch):
    write_series(tmp_path / "in/x", voxels(), AXIAL)

    def full(source, target):
        raise PermissionError(13, "Permission denied", str(source), None, str(target))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="Permission denied") as error:
        convert("x")
    assert error.value.filename == str(tmp_path / "out")
    assert "sub-x" not in str(error.value)


def test_a_folder_that_is_worked_on_is_left_alone(tmp_path, convert):
    write_series(tmp_path / "in/x", voxels(), AXIAL)
    with held(tmp_path / "out"), pytest.raises(StudyError, match="another process works on this shard"):
        convert("x")
    assert not os.path.exists(image(tmp_path, "x"))


def test_links_in_a_folder_are_followed_once(tmp_path):
    paths = write_series(tmp_path / "in/x", voxels(), AXIAL)
    (tmp_path / "in/x/back").symlink_to(tmp_path / "in/x")
    (tmp_path / "in/x/to-y").symlink_to(tmp_path / "in/y")
    (tmp_path / "in/y").mkdir()
    (tmp_path / "in/y/more.dcm").write_bytes(b"more")
    (tmp_path / "in/y/back").symlink_to(tmp_path / "in/x")
    found = dicom.folder_files(tmp_path / "in/x")
    assert found == sorted([*map(str, paths), str(tmp_path / "in/x/to-y/more.dcm")])


# With the index and the volumes ---------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path, config_schema, scans_schema):
    """Two DICOM folders and a NIfTI file in one cohort; a call refreshes the index and gives the manifest."""
    for number in (1, 2):
        write_series(tmp_path / f"in/p{number}", voxels(number), AXIAL)
    (tmp_path / "in/p2/notes.txt").write_text("no DICOM")
    (tmp_path / "p3.nii.gz").write_bytes(b"x")
    table = "subject\tpath\tdicom\tdiagnosis\np1\t\tin/p1\tCN\np2\tn/a\tin/p2\tAD\np3\tp3.nii.gz\tn/a\tAD\n"
    (tmp_path / "scans.tsv").write_text(table)

    def refresh():
        config = {
            "title": "t",
            "cohorts": {"a": {"table": str(tmp_path / "scans.tsv")}},
            "labels": {"CN": 0, "AD": 1},
            "encoder": {"weights": "random"},
            "grid": [{"heads": ["linear"], "aggregations": ["local"]}],
        }
        folders = {name: tmp_path / name for name in ("volumes", "phantoms", "nifti")}
        refresh.index = index.refresh(checked(config, config_schema), scans_schema, root=tmp_path / "index", **folders)
        return read_table(tmp_path / "index/a/shards/0.tsv", MANIFEST).set_index("subject")

    return refresh


def test_a_touched_folder_changes_no_manifest_and_a_changed_one_does(tmp_path, study):
    before = study()
    assert study.index["a"]["shards"] == {"0": 3}
    assert study.index["a"]["dicom"] == {"0": 2}
    assert before["path"].tolist()[:2] == [str(tmp_path / f"nifti/a/0/sub-p{n}_T1w.nii.gz") for n in (1, 2)]
    assert before["path"]["p3"] == str(tmp_path / "p3.nii.gz")
    folders = read_table(tmp_path / "index/a/dicom/0.tsv", DICOM)
    assert folders["dicom"].tolist() == [str(tmp_path / "in/p1"), str(tmp_path / "in/p2")]
    table = dicom.convert_shard(folders, tmp_path / "nifti/a/0", FIRST, cohort="a")
    write_table(table, tmp_path / "nifti/a/0.tsv")
    for path in (tmp_path / "in").glob("*/*"):
        os.utime(path)
    assert study().equals(before)
    write_series(tmp_path / "in/p2", voxels(8), AXIAL)
    after = study()
    assert after["fingerprint"]["p1"] == before["fingerprint"]["p1"]
    assert after["fingerprint"]["p2"] != before["fingerprint"]["p2"]
    write_series(tmp_path / "in/p2", voxels(8), AXIAL)[3].unlink()  # one that cannot be converted, either
    before = study()
    folders = read_table(tmp_path / "index/a/dicom/0.tsv", DICOM)
    table = dicom.convert_shard(folders, tmp_path / "nifti/a/0", FIRST, cohort="a")
    assert table["status"].tolist() == ["ok", "failed"]
    write_table(table, tmp_path / "nifti/a/0.tsv")
    for path in (tmp_path / "in").glob("*/*"):
        os.utime(path)
    assert study().equals(before)


def test_a_new_file_in_a_folder_makes_its_scan_new(tmp_path, study):
    before = study()
    (tmp_path / "in/p2/more.txt").write_text("more")
    after = study()
    assert after["fingerprint"]["p1"] == before["fingerprint"]["p1"]
    assert after["fingerprint"]["p2"] != before["fingerprint"]["p2"]
    assert study().equals(after)


def test_a_folder_that_is_not_there_or_a_row_with_both_or_neither_is_an_error(tmp_path, study):
    shutil.rmtree(tmp_path / "in/p2")
    with pytest.raises(StudyError, match=r"1 files of its scan table are not there: .*in/p2"):
        study()
    (tmp_path / "scans.tsv").write_text("subject\tpath\tdicom\tdiagnosis\np1\tp3.nii.gz\tin/p1\tCN\np2\t\t\tAD\n")
    with pytest.raises(StudyError, match="line 2 and 1 more: a row needs either a path"):
        study()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("../../.git/annex/objects/not-here", "1 files of its data set are not fetched yet: .*p2/lost.dcm; fetch them"),
        ("nowhere", "1 entries of its DICOM folders are links .*p2/lost.dcm; fetch them with datalad get"),
        ("lost.dcm", "1 entries of its DICOM folders are links .*p2/lost.dcm; fetch them with datalad get"),
    ],
    ids=["annexed", "dangling", "cyclic"],
)
def test_a_link_that_leads_nowhere_in_a_folder_is_told_at_the_start(tmp_path, study, target, words):
    (tmp_path / "in/p2/lost.dcm").symlink_to(target)
    with pytest.raises(StudyError, match=words):
        study()


def test_a_folder_that_cannot_be_listed_stops_the_start_unless_it_is_for_want_of_permission(
    tmp_path, study, monkeypatch
):
    before, scandir, failing = study(), os.scandir, [PermissionError(13, "Permission denied")]

    def fail(path):
        if failing and str(path) == str(tmp_path / "in/p2"):
            raise failing[0]
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    assert study()["fingerprint"]["p2"] == dicom.UNREADABLE  # a row with this reason, when the shard runs
    failing[:] = [OSError(5, "Input/output error")]
    with pytest.raises(StudyError, match=r"in/p2 cannot be listed \(Input/output error\); see that its disk"):
        study()
    failing.clear()
    assert study().equals(before)


def test_without_dcm2niix_the_start_says_what_to_install(study, monkeypatch):
    monkeypatch.setattr(dicom, "version", lambda name: (_ for _ in ()).throw(dicom.PackageNotFoundError(name)))
    with pytest.raises(StudyError, match=r"cohort a: .*pip install 'fedbrain\[dicom\]'"):
        study()


def test_refused_folders_are_failed_rows_in_the_place_of_their_scans():
    scans = pd.DataFrame({"scan": ["sub-1", "sub-2", "sub-3"], "subject": ["1", "2", "3"], "session": None})
    scans = scans.assign(path="x", mask=None, fingerprint=["f1", "f2", "f3"]).astype(MANIFEST)
    made = scans.iloc[[0, 2]].reindex(columns=[*VOLUMES, "cjv"]).assign(status="ok", cjv=0.4).astype(VOLUMES)
    conversions = pd.DataFrame({"scan": ["sub-2", "sub-3"], "status": ["failed", "ok"], "reason": ["gap", None]})
    conversions = conversions.reindex(columns=list(CONVERSIONS)).astype(CONVERSIONS)
    table = with_refused(made, scans, conversions)
    assert table["scan"].tolist() == ["sub-1", "sub-2", "sub-3"]
    assert table["status"].tolist() == ["ok", "failed", "ok"]
    assert table["reason"][1] == "gap"
    assert table["fingerprint"].tolist() == ["f1", "f2", "f3"]
    assert table.columns.tolist() == made.columns.tolist()
