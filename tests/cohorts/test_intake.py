"""Scan tables and BIDS folders: what takes part, what is left out and why, and every mistake with its place."""

import pytest

from fedbrain.cohorts import intake
from fedbrain.errors import StudyError
from fedbrain.tables import EXCLUDED

LABELS = {"CN": 0, "AD": 1}
HEADER = "subject\tsession\tpath\tdiagnosis\tage\tsex\tsite\n"


@pytest.fixture
def table(tmp_path, scans_schema):
    def read(*rows, header=HEADER):
        for name in ("a", "b", "c"):
            (tmp_path / f"{name}.nii.gz").write_bytes(b"x")
        path = tmp_path / "scans.tsv"
        path.write_text(header + "".join(f"{row}\n" for row in rows))
        frame = intake.read_scan_table(path, scans_schema, cohort="north")
        intake.check_files(frame, cohort="north")
        return frame

    return read


def test_rows_outside_the_labels_are_left_out_with_their_reason_and_line(table):
    frame = table(
        "01\tn/a\ta.nii.gz\tCN\t70.5\tF\tx", "02\tn/a\tb.nii.gz\tMCI\t71\tM\tx", "03\t1\tc.nii.gz\tn/a\tn/a\tn/a\tn/a"
    )
    scans, excluded = intake.select(frame, cohort="north", labels=LABELS, exclude=[])
    assert scans["scan"].tolist() == ["sub-01"]
    assert scans["label"].tolist() == [0]
    assert scans["age"].tolist() == [70.5]
    assert list(excluded.columns) == list(EXCLUDED)
    assert excluded["row"].tolist() == [3, 4]
    assert excluded["reason"].tolist() == ["diagnosis MCI is not among the study's labels", "no diagnosis"]


def test_the_exclude_list_takes_subjects_and_scans(table):
    frame = table("01\t1\ta.nii.gz\tCN\t\t\t", "01\t2\tb.nii.gz\tCN\t\t\t", "02\t1\tc.nii.gz\tAD\t\t\t")
    scans, excluded = intake.select(frame, cohort="north", labels=LABELS, exclude=["sub-01_ses-2", "sub-02"])
    assert scans["scan"].tolist() == ["sub-01_ses-1"]
    assert set(excluded["reason"]) == {"on the exclude list of the config"}
    with pytest.raises(StudyError, match=r"cohorts\.north\.exclude: sub-9 fits no scan"):
        intake.select(frame, cohort="north", labels=LABELS, exclude=["sub-9"])


def test_ids_stay_text(table):
    frame = table("007\tn/a\ta.nii.gz\tCN\t\t\t")
    assert frame["subject"].tolist() == ["007"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["01\tn/a\tnone.nii.gz\tCN\t\t\t"], ["1 files", "none.nii.gz", "correct the paths"]),
        (["0 1\tn/a\ta.nii.gz\tCN\t\t\t"], ["line 2", "column subject is '0 1'", "Letters and digits"]),
        (["01\tn/a\ta.nii.gz\tCN\told\t\t"], ["line 2", "column age is 'old'", "Years"]),
        (["01\tn/a\ta.nii.gz\tCN\t300\t\t"], ["line 2", "column age is '300'"]),
        (["01\tn/a\ta.nii.gz\tCN\t70\tfemale\t"], ["line 2", "column sex is 'female'", "F, M"]),
        (["\tn/a\ta.nii.gz\tCN\t70\tF\t"], ["line 2", "column subject is empty"]),
    ],
)
def test_a_wrong_row_is_named_with_line_column_and_mend(table, rows, words):
    with pytest.raises(StudyError) as error:
        table(*rows)
    for word in ["cohort north", *words]:
        assert word in str(error.value)


def test_two_rows_for_one_scan_and_one_file_twice(table):
    frame = table("01\t1\ta.nii.gz\tCN\t\t\t", "01\t1\tb.nii.gz\tCN\t\t\t")
    with pytest.raises(StudyError, match=r"two rows for the scan sub-01_ses-1 \(lines 2, 3\)"):
        intake.select(frame, cohort="north", labels=LABELS, exclude=[])
    frame = table("01\t1\ta.nii.gz\tCN\t\t\t", "02\t1\ta.nii.gz\tCN\t\t\t")
    with pytest.raises(StudyError, match="two rows name the file"):
        intake.select(frame, cohort="north", labels=LABELS, exclude=[])


def test_a_table_without_a_needed_column_or_with_commas_says_which_columns_it_has(table):
    with pytest.raises(StudyError, match="no column subject, path, diagnosis"):
        table("01,a.nii.gz,CN", header="subject,path,diagnosis\n")


def test_labels_that_fit_nothing_tell_the_diagnoses_that_are_there(table):
    frame = table("01\tn/a\ta.nii.gz\tDementia\t\t\t")
    with pytest.raises(StudyError, match=r"no scan is left; the diagnoses are Dementia"):
        intake.select(frame, cohort="north", labels=LABELS, exclude=[])
