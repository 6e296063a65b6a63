"""What links may bring into a data set."""

import pandas as pd
import pytest

from fedbrain.cohorts import intake
from fedbrain.errors import StudyError


def test_links_that_lead_out_of_the_data_set_are_refused(tmp_path):
    inside, elsewhere = tmp_path / "data", tmp_path / "data-of-others"
    for folder in (inside / ".git/annex/objects", elsewhere):
        folder.mkdir(parents=True)
        (folder / "scan.nii.gz").write_bytes(b"content")
    (inside / "annexed.nii.gz").symlink_to(".git/annex/objects/scan.nii.gz")
    (inside / "foreign.nii.gz").symlink_to("../data-of-others/scan.nii.gz")
    (inside / "folder").symlink_to(elsewhere)
    names = ["annexed.nii.gz", "foreign.nii.gz", "folder/scan.nii.gz"]
    frame = pd.DataFrame({"path": [str(inside / name) for name in names], "mask": pd.NA, "dicom": pd.NA})
    intake.check_links(frame.iloc[:1], inside, cohort="a")
    (tmp_path / "by-a-link").symlink_to("data")  # the data set itself may be reached by one
    intake.check_links(frame.iloc[:1], tmp_path / "by-a-link", cohort="a")
    for column in ("path", "mask"):
        moved = pd.DataFrame({"path": pd.NA, "mask": pd.NA, "dicom": pd.NA} | {column: frame["path"]})
        with pytest.raises(
            StudyError, match="a: 2 files lie outside of .*foreign.nii.gz, .*folder/scan.nii.gz; copy them in"
        ):
            intake.check_links(moved, inside, cohort="a")


def test_links_within_dicom_folders_are_looked_at_too(tmp_path):
    inside, elsewhere = tmp_path / "data", tmp_path / "data-of-others"
    for folder in (inside / "one/series", inside / "two", elsewhere / "series"):
        folder.mkdir(parents=True)
    (inside / "one/series/1.dcm").write_bytes(b"content")
    (elsewhere / "series/2.dcm").write_bytes(b"content")
    (inside / "two/by-a-link.dcm").symlink_to(inside / "one/series/1.dcm")
    (inside / "whole").symlink_to(elsewhere)

    def check(*names):
        paths = [str(inside / name) for name in names]
        frame = pd.DataFrame({"path": pd.NA, "mask": pd.NA, "dicom": paths})
        intake.check_links(frame, inside, cohort="a")

    check("one", "two")
    (inside / "one/file.dcm").symlink_to(elsewhere / "series/2.dcm")
    (inside / "two/folder").symlink_to(elsewhere / "series")
    with pytest.raises(StudyError, match=r"a: 1 files lie outside of .*one/file.dcm; copy"):
        check("one")
    with pytest.raises(StudyError, match=r"a: 1 files lie outside of .*two/folder/2.dcm; copy"):
        check("two")
    with pytest.raises(StudyError, match=r"a: 1 files lie outside of .*whole; copy"):
        check("whole")
