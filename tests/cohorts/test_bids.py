"""BIDS folders: which T1w image stands for a session, what is passed over, whose it is, and what is refused."""

import warnings

import pytest
from bids_tree import (
    clinica_adni,
    image_name,
    many_entities,
    oasis3,
    one_person_many_sessions,
    write_tree,
    write_tsv,
)

from fedbrain.cohorts import intake
from fedbrain.cohorts.bids import read_bids
from fedbrain.errors import StudyError


@pytest.fixture
def read(scans_schema):
    def call(folder, diagnosis_column="diagnosis", scanners=False, **t1w):
        t1w = {"choose": "first"} | t1w
        return read_bids(
            folder, scans_schema, cohort="site", diagnosis_column=diagnosis_column, t1w=t1w, scanners=scanners
        )

    return call


def names(paths):
    return [path.rpartition("/")[2].removesuffix("_T1w.nii.gz") for path in paths.dropna()]


def test_the_tables_of_a_folder_give_the_facts_and_those_of_a_session_win(tmp_path, read):
    images = [image_name("01", None), image_name("02", "a"), image_name("02", "b", acq="mprage")]
    people = [
        {"participant_id": "sub-01", "age": 70, "sex": "F", "dx": "CN"},
        {"participant_id": "sub-02", "age": 75, "sex": "male", "dx": "AD"},
    ]
    write_tree(tmp_path, images, people)
    visits = [{"session_id": "ses-b", "age": 76, "dx": None}, {"session_id": "ses-a", "age": 74, "dx": "CN"}]
    write_tsv(tmp_path / "sub-02/sub-02_sessions.tsv", visits)
    frame, passed = read(tmp_path, "dx")
    assert frame["subject"].tolist() == ["01", "02", "02"]
    assert frame["session"].fillna("-").tolist() == ["-", "a", "b"]
    assert frame["diagnosis"].tolist() == ["CN", "CN", "AD"]
    assert frame["age"].tolist() == [70, 74, 76]
    assert frame["sex"].tolist() == ["F", "M", "M"]
    assert not len(passed)


@pytest.mark.parametrize(
    ("t1w", "chosen"),
    [
        ({}, "acq-mprage_run-1"),
        ({"choose": "last"}, "acq-space"),
        ({"acq": "mprage", "choose": "last"}, "acq-mprage_rec-norm_run-2"),
        ({"acq": "mprage", "rec": None, "choose": "last"}, "acq-mprage_run-10"),
        ({"acq": ["space", "mprage"]}, "acq-space"),
        ({"acq": ["spgr", "mprage"], "run": 2, "rec": ["norm", None]}, "acq-mprage_rec-norm_run-2"),
        ({"run": "02", "rec": None}, "acq-mprage_run-2"),
        ({"ce": "gad"}, "acq-mprage_ce-gad"),
        ({"acq": None}, None),
    ],
)
def test_filters_and_the_rule_for_the_rest_choose_among_the_images_of_a_session(tmp_path, read, t1w, chosen):
    many_entities(tmp_path)
    write_tree(tmp_path, [image_name("09", None)])
    (tmp_path / "participants.tsv").write_text("participant_id\tdiagnosis\nsub-01\tCN\nsub-09\tCN\n")
    if "ce" in t1w or "run" in t1w:  # something must be left that fits
        write_tree(tmp_path, [image_name("09", None, ce="gad"), image_name("09", None, run="2")])
    frame, passed = read(tmp_path, **t1w)
    row = frame[(frame["subject"] == "01") & (frame["session"] == "a")].iloc[0]
    others = passed[(passed["subject"] == "01") & (passed["session"] == "a")]
    if chosen is None:
        assert row["reason"] == "no usable T1w scan: does not fit t1w (acq)"
        assert len(others) == 6
        assert others["chosen"].isna().all()
    else:
        assert names(frame.loc[[row.name], "path"]) == [f"sub-01_ses-a_{chosen}"]
        assert len(others) == 5
        assert set(names(others["chosen"])) == {f"sub-01_ses-a_{chosen}"}


def test_several_images_where_only_one_may_be_are_named(tmp_path, read):
    many_entities(tmp_path)
    with pytest.raises(
        StudyError, match=r"sub-01/ses-a has 5 T1w scans: .*acq-mprage_run-1_T1w.*say in its cohort's t1w"
    ):
        read(tmp_path, choose="only")
    frame, _ = read(tmp_path, choose="only", acq=["mprage", None], rec=None, run=[1, None])
    assert "sub-01_ses-a_acq-mprage_run-1" in names(frame["path"])


def test_parts_contrast_and_echoes_are_passed_over_and_a_session_of_them_only_is_lost_with_the_reason(tmp_path, read):
    many_entities(tmp_path)
    frame, passed = read(tmp_path)
    reasons = dict(zip(names(passed["path"]), passed["reason"]))
    assert reasons["sub-01_ses-a_acq-mprage_ce-gad"] == "contrast-enhanced (ce); t1w.ce takes it"
    assert reasons["sub-01_ses-b_echo-2"] == "one echo of several; t1w.echo takes it"
    assert reasons["sub-02_part-phase"] == "not the magnitude (part-phase)"
    assert reasons["sub-01_ses-a_acq-mprage_run-10"] == "another T1w of this session was chosen"
    assert "sub-02_part-mag" in names(frame["path"])
    lost = frame.set_index("subject").loc["03"]
    assert lost["reason"] == "no usable T1w scan: contrast-enhanced (ce); t1w.ce takes it"
    scans, excluded = intake.select(frame, cohort="site", labels={"CN": 0, "AD": 1}, exclude=[])
    assert excluded["subject"].tolist() == ["03"]
    assert len(scans) == 4


def test_public_layouts(tmp_path, read):
    frame, passed = read(oasis3(tmp_path / "oasis3"))
    assert names(frame["path"]) == [
        "sub-OAS30001_ses-d0129_run-01",
        "sub-OAS30001_ses-d0757_run-01",
        "sub-OAS30002_ses-d0653",
    ]
    assert names(passed["path"]) == ["sub-OAS30001_ses-d0757_run-02"]
    frame, _ = read(clinica_adni(tmp_path / "adni"))  # the column is in the sessions tables only
    assert frame["diagnosis"].tolist() == ["CN", "MCI", "AD"]
    assert frame["age"].tolist() == [84.8, 85.8, 76.9]
    assert frame["session"].tolist() == ["M000", "M012", "M006"]
    frame, passed = read(one_person_many_sessions(tmp_path / "ds"))
    assert frame["reason"].isna().sum() == 69  # of 104, those with an odd number or one divisible by three
    assert len(frame) == 69
    assert len(passed) == 17  # odd and divisible by three: two runs


def test_participants_without_a_scan_and_scans_without_a_participant_are_left_out_with_the_reason(tmp_path, read):
    images = [image_name("01", None), image_name("02", None), "sub-03/func/sub-03_task-rest_bold.nii.gz"]
    people = [{"participant_id": f"sub-0{n}", "diagnosis": "CN"} for n in (1, 3, 4)]
    frame, _ = read(write_tree(tmp_path, images, people))
    scans, excluded = intake.select(frame, cohort="site", labels={"CN": 0, "AD": 1}, exclude=[])
    assert scans["subject"].tolist() == ["01"]
    assert dict(zip(excluded["subject"], excluded["reason"])) == {
        "02": "no row in participants.tsv",
        "03": "no T1w scan",
        "04": "no T1w scan",
    }
    frame, _ = read(write_tree(tmp_path, images, [{"participant_id": "sub-04", "diagnosis": "MCI"}] + people[:1]))
    _, excluded = intake.select(frame, cohort="site", labels={"CN": 0, "AD": 1}, exclude=["sub-03"])
    reasons = dict(zip(excluded["subject"], excluded["reason"]))
    assert reasons["03"] == "on the exclude list of the config"
    assert reasons["04"] == "diagnosis MCI is not among the study's labels"  # not asked for, with a scan or without


def test_ages_and_sexes_of_public_tables(tmp_path, read):
    written = [(">89", "m"), ("89+", "Female"), ("> 90", "O"), ("n/a", "n/a"), ("71.5", "MALE"), (" 60 ", "f")]
    people = [
        {"participant_id": f"sub-{n}", "diagnosis": "CN", "age": age, "sex": sex}
        for n, (age, sex) in enumerate(written)
    ]
    frame, _ = read(write_tree(tmp_path, [image_name(str(n), None) for n in range(6)], people))
    assert frame["age"].fillna(-1).tolist() == [90, 89, 91, -1, 71.5, 60]
    assert frame["sex"].fillna("-").tolist() == ["M", "F", "O", "-", "M", "F"]
    people[0]["sex"] = "1"
    with pytest.raises(StudyError, match=r"participants\.tsv, sub-0, column sex is '1'.*does not say which is which"):
        read(write_tree(tmp_path, [], people))


def test_hidden_and_ignored_images_are_no_images(tmp_path, read):
    images = [image_name("01", None), image_name("01", None, acq="bad"), image_name("02", None), image_name("03", None)]
    hidden = ["sub-01/anat/._sub-01_acq-aa_T1w.nii.gz", ".git/annex/sub-09/anat/sub-09_T1w.nii.gz"]
    write_tree(tmp_path, images + hidden, [{"participant_id": f"sub-0{n}", "diagnosis": "CN"} for n in (1, 2, 3)])
    (tmp_path / ".bidsignore").write_text("# scanned twice\n*_acq-bad_*\nsub-02/\n/sub-03/anat/*_T1w.nii.gz\n")
    frame, passed = read(tmp_path)
    assert names(frame["path"]) == ["sub-01"]
    assert frame["reason"].tolist()[1:] == ["no T1w scan"] * 2
    assert not len(passed)


def test_an_image_in_anothers_folder_is_an_error(tmp_path, read):
    write_tree(tmp_path, [image_name("01", "a"), "sub-01/ses-a/anat/sub-02_ses-a_T1w.nii.gz"])
    with pytest.raises(StudyError, match="lies in the folder of sub-01/ses-a, which its name contradicts; move"):
        read(tmp_path)


def test_names_that_are_not_bids_are_passed_over(tmp_path, read):
    _, passed = read(write_tree(tmp_path, [image_name("01", None), "sub-01/anat/sub-01_acq-mp-rage_x_T1w.nii.gz"]))
    assert passed["reason"].tolist() == ["its name is not BIDS"]


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda top: (top / "set/participants.tsv").unlink(), r"no .*set/participants\.tsv; a BIDS cohort needs it"),
        (lambda top: (top / "set").rename(top / "sets"), r"no folder .*set; did you mean .*sets\? Correct cohorts\.site\.bids"),
        (
            lambda top: (top / "set").rename(top / "raw") and (top / "set").mkdir() or (top / "raw").rename(top / "set/raw"),
            r"There is one in .*set/raw: is that the data set",
        ),
        (
            lambda top: (top / "set/dataset_description.json").write_text('{"DatasetType": "derivative"}'),
            "is a derivative data set",
        ),
        (
            lambda top: (top / "set/participants.tsv").write_text("participant_id,diagnosis\nsub-01,CN\n"),
            "no column participant_id; it has participant_id,diagnosis. Columns are separated by tabs",
        ),
        (
            lambda top: (top / "set/participants.tsv").write_text("participant_id\tdx\nsub-01\tCN\n"),
            r"have the columns participant_id, dx, but none named 'diagnosis'",
        ),
        (
            lambda top: (top / "set/participants.tsv").write_text("participant_id\tdiagnosis\nsub-01\tCN\n01\tCN\n"),
            "lists a participant twice",
        ),
        (
            lambda top: (top / "set/participants.tsv").write_bytes("participant_id\tdiagnosis\tname\nsub-01\tCN\tJosé".encode("latin-1")),
            "not a tab-separated table",
        ),
        (
            lambda top: (top / "set/sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz").unlink(),
            r"no sub-\*/\[ses-\*/\]anat/\*_T1w\.nii\[\.gz\] under",
        ),
        (
            lambda top: (top / "set/sub-01/sub-01_sessions.tsv").write_text("session\tage\nses-a\t70\n"),
            "has no column session_id; it has session, age",
        ),
        (
            lambda top: (top / "set/sub-01/sub-01_sessions.tsv").write_text("session_id\nses-a\nses-a\n"),
            "lists a session twice",
        ),
    ],
)  # fmt: skip
def test_what_is_no_raw_data_set_is_refused_with_the_mend(tmp_path, read, break_it, words):
    write_tree(tmp_path / "set", [image_name("01", "a")])
    read(tmp_path / "set")
    break_it(tmp_path)
    with pytest.raises(StudyError, match=words):
        read(tmp_path / "set")


def test_a_scan_that_is_not_fetched_is_told_from_one_that_is_not_there(tmp_path, read):
    folder = write_tree(tmp_path, [image_name("01", None), image_name("02", None), image_name("03", None)])
    linked = folder / "sub-01/anat/sub-01_T1w.nii.gz"
    linked.unlink()
    linked.symlink_to("../../.git/annex/objects/xx/yy/MD5E-s9--0.nii.gz/MD5E-s9--0.nii.gz")
    (folder / "sub-02/anat/sub-02_T1w.nii.gz").write_text("/annex/objects/MD5E-s9--0.nii.gz\n")
    frame, _ = read(folder)
    scans, _ = intake.select(frame, cohort="site", labels={"CN": 0, "AD": 1}, exclude=[])
    with pytest.raises(StudyError, match=r"2 files of its data set are not fetched yet: .*datalad get"):
        intake.check_files(scans, cohort="site")
    intake.check_files(scans[scans["subject"] == "03"], cohort="site")


# Against software that is not ours ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pybids():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("bids", reason="pybids is not installed: pip install -e '.[test]'")


@pytest.mark.parametrize("layout", [oasis3, clinica_adni, one_person_many_sessions, many_entities])
def test_all_t1w_images_of_pybids_are_taken_or_passed_over_and_no_others(tmp_path, read, pybids, layout):
    folder = layout(tmp_path / "set")
    frame, passed = read(folder)
    theirs = pybids.BIDSLayout(folder).get(suffix="T1w", extension=[".nii", ".nii.gz"], return_type="filename")
    assert sorted([*frame["path"].dropna(), *passed["path"]]) == sorted(map(str, theirs))


def test_names_of_the_generator_are_bids(tmp_path):
    validator = pytest.importorskip("bids_validator").BIDSValidator()
    folder = many_entities(tmp_path)
    found = [path.relative_to(folder) for path in folder.rglob("sub-*") if path.is_file()]
    raw = [path for path in found if path.parts[0].startswith("sub-")]
    assert [path for path in raw if not validator.is_bids(f"/{path.as_posix()}")] == []


def test_the_scanner_is_inherited_as_pybids_does(tmp_path, read, pybids):
    folder = many_entities(tmp_path / "set")
    frame, _ = read(folder, scanners=True)
    by_path = frame.dropna(subset=["path"]).set_index("path")
    for path, row in by_path.iterrows():
        theirs = pybids.BIDSLayout(folder).get_metadata(path)
        assert row["field_strength"] == pytest.approx(theirs["MagneticFieldStrength"])
        if "ManufacturersModelName" in theirs:
            assert row["scanner"].split()[-1] == theirs["ManufacturersModelName"].replace("_", " ").split()[-1]
    strengths = {
        name: row["field_strength"] for name, row in zip(names(by_path.index.to_series()), by_path.to_dict("records"))
    }
    scanners = dict(zip(names(by_path.index.to_series()), by_path["scanner"]))
    assert scanners["sub-01_ses-a_acq-mprage_run-1"] == "Siemens Skyra fit"
    assert strengths["sub-01_ses-a_acq-mprage_run-1"] == pytest.approx(2.89362)
    assert scanners["sub-02_part-mag"] == "GE MR750"
    assert scanners["sub-01_ses-b_rec-rms"] == "Siemens"
    assert read(folder)[0]["scanner"].isna().all()  # nothing is opened unasked
