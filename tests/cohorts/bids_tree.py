"""Writes small BIDS data sets, in the ways that public ones are laid out."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd


def image_name(subject: str, session: str | None, **entities: str) -> str:
    """Of a T1w image below the data set, entities in the order given."""
    folder = f"sub-{subject}/" + (f"ses-{session}/" if session else "") + "anat/"
    stem = f"sub-{subject}_" + (f"ses-{session}_" if session else "")
    return folder + stem + "".join(f"{key}-{value}_" for key, value in entities.items()) + "T1w.nii.gz"


def write_tree(
    folder: Path,
    images: Iterable[str],
    participants: Iterable[Mapping] | None = None,
    sidecars: Mapping[str, Mapping] | None = None,
) -> Path:
    """A raw data set with these images (paths), rows of participants.tsv (default: all CN) and JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_description.json").write_text('{"Name": "made for a test", "BIDSVersion": "1.10.0"}')
    for name in images:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    if participants is None:
        subjects = sorted({name.split("/")[0] for name in images if name.startswith("sub-")})
        participants = [{"participant_id": subject, "diagnosis": "CN"} for subject in subjects]
    write_tsv(folder / "participants.tsv", participants)
    for name, content in (sidecars or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def write_tsv(path: Path, rows: Iterable[Mapping]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False, na_rep="n/a")


def oasis3(folder: Path) -> Path:
    """Days as sessions, runs with leading zeros, sessions without T1w."""
    images = [
        image_name("OAS30001", "d0129", run="01"),
        image_name("OAS30001", "d0757", run="02"),
        image_name("OAS30001", "d0757", run="01"),
        image_name("OAS30002", "d0653"),
        "sub-OAS30001/ses-d2430/pet/sub-OAS30001_ses-d2430_pet.nii.gz",
    ]
    people = [
        {"participant_id": "sub-OAS30001", "diagnosis": "CN", "age": "65.1", "sex": "F"},
        {"participant_id": "sub-OAS30002", "diagnosis": "AD", "age": "67", "sex": "M"},
    ]
    return write_tree(folder, images, people)


def clinica_adni(folder: Path) -> Path:
    """Months as sessions; age and diagnosis of each visit in the sessions tables only."""
    images = [
        image_name("ADNI002S0295", "M000"),
        image_name("ADNI002S0295", "M012"),
        image_name("ADNI002S0413", "M006"),
    ]
    people = [
        {"participant_id": "sub-ADNI002S0295", "sex": "M", "education_level": 18, "diagnosis_sc": "CN"},
        {"participant_id": "sub-ADNI002S0413", "sex": "F", "education_level": 16, "diagnosis_sc": "CN"},
    ]
    write_tree(folder, images, people)
    write_tsv(
        folder / "sub-ADNI002S0295/sub-ADNI002S0295_sessions.tsv",
        [
            {"session_id": "ses-M000", "age": 84.8, "diagnosis": "CN"},
            {"session_id": "ses-M012", "age": 85.8, "diagnosis": "MCI"},
        ],
    )
    write_tsv(
        folder / "sub-ADNI002S0413/sub-ADNI002S0413_sessions.tsv",
        [{"session_id": "ses-M006", "age": 76.9, "diagnosis": "AD"}],
    )
    return folder


def one_person_many_sessions(folder: Path) -> Path:
    """As OpenNeuro's ds000031: one participant, some hundred sessions, several runs in some."""
    images = [
        image_name("01", f"{number:03d}", run=f"{run:03d}")
        for number in range(1, 105)
        for run in range(1, 1 + (number % 3 == 0) + (number % 2))
    ]
    return write_tree(folder, images, [{"participant_id": "sub-01", "diagnosis": "CN", "age": 45, "sex": "M"}])


def many_entities(folder: Path) -> Path:
    """Everything that a name may carry, sidecars at all levels."""
    images = [
        image_name("01", "a", acq="mprage", run="1"),
        image_name("01", "a", acq="mprage", run="2"),
        image_name("01", "a", acq="mprage", run="10"),
        image_name("01", "a", acq="mprage", rec="norm", run="2"),
        image_name("01", "a", acq="mprage", ce="gad"),
        image_name("01", "a", acq="space"),
        image_name("01", "b", echo="1"),
        image_name("01", "b", echo="2"),
        image_name("01", "b", rec="rms"),
        image_name("02", None, part="mag"),
        image_name("02", None, part="phase"),
        image_name("03", None, ce="gad"),
        image_name("04", None, acq="mprage"),
        "sub-02/anat/sub-02_inv-1_part-mag_MP2RAGE.nii.gz",
        "sub-02/anat/sub-02_UNIT1.nii.gz",
        "sub-02/anat/sub-02_mod-T1w_defacemask.nii.gz",
        "sub-02/anat/sub-02_T2w.nii.gz",
        "sub-02/func/sub-02_task-rest_bold.nii.gz",
        "derivatives/x/sub-01/ses-a/anat/sub-01_ses-a_desc-preproc_T1w.nii.gz",
        "sourcedata/sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
    ]
    sidecars = {
        "T1w.json": {"Manufacturer": "SIEMENS", "MagneticFieldStrength": 1.5},
        "acq-mprage_T1w.json": {"ManufacturersModelName": "Skyra"},
        "sub-01/ses-a/sub-01_ses-a_T1w.json": {"MagneticFieldStrength": 2.89362},
        "sub-01/ses-a/anat/sub-01_ses-a_acq-mprage_run-1_T1w.json": {"ManufacturersModelName": "Skyra_fit"},
        "sub-02/anat/sub-02_part-mag_T1w.json": {
            "Manufacturer": "GE MEDICAL SYSTEMS",
            "ManufacturersModelName": "MR750",
        },
    }
    return write_tree(folder, images, sidecars=sidecars)
