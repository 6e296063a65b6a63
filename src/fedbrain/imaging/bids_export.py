"""A cohort's volumes as a BIDS derivative data set, for other software and other people.

In the results volumes lie flat, a folder per shard. Here they are laid out as BIDS asks, by hard links where the disk allows
(no second copy), with the descriptions that it asks for.

BIDS 1.10, https://bids-specification.readthedocs.io/en/v1.10.0/derivatives/imaging.html
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fedbrain.errors import StudyError
from fedbrain.imaging import layout
from fedbrain.provenance import versions
from fedbrain.shard_folders import errors_name_only
from fedbrain.tables import write_table, write_text

BIDS_VERSION = "1.10.0"
RESOLUTION = "1.5 mm isotropic, 128 x 128 x 128 voxels, axes RAS, centred on MNI (0, -17, 5) mm"
INTENSITIES = {  # what the values are, by the recipe's ``intensity``
    "encoder": "z-scores by mean and deviation of voxels above 0; the background is not 0",
    "zscore": "z-scores by mean and deviation of the brain; 0 outside",
    "minmax": "0.1st to 99.9th percentile of the brain mapped to 0...1; 0 outside",
    "whitestripe": "z-scores by mean and deviation of the white stripe, so that white matter is near 0; the background is not 0",
    "kde": "divided by the peak of white matter, which comes to 1; 0 outside",
    "fcm": "divided by the mean of white matter, which comes to 1; 0 outside",
    "nyul": "on a standard scale fitted to training scans, then z-scores by mean and deviation of voxels above 0; the "
    "background is not 0",
    "none": "bias-corrected, the scanner's units; 0 outside",
}
DESCRIPTIONS = {
    "desc-preproc": "brain, bias field corrected (N4), affinely aligned with the template, intensity-normalized",
    "desc-brain": "brain mask on the grid of the volume",
}
README = """{title}: volumes of the cohort {cohort}, made by fedbrain {version}.

T1-weighted brains in the space {space} at 1.5 mm, each with its brain mask. The JSON file of a volume has every
step with its parameters. {count} scans of {subjects} subjects. Ages, sexes and diagnoses are those of the cohort's tables.
"""


def export_cohort(
    folder: str | Path,
    scans: pd.DataFrame,
    volumes: Mapping[str | Path, pd.DataFrame],
    *,
    cohort: str,
    title: str,
    raw: str | Path | None = None,
) -> None:
    """Writes the data set ``folder``: all scans that are ok.

    Args:
        folder: made anew; what stood there before is removed.
        scans: tables.SCANS.
        volumes: tables.VOLUMES by the folder of the shard's volumes.
        cohort, title: names of the cohort and of the study.
        raw: the BIDS folder that the scans come from; without one the volumes name no sources.

    Raises StudyError, naming the row, where a volume or record is missing or damaged; OSError, naming ``folder`` and no subject,
    where the data set cannot be written. Nothing half made stays then, and the earlier data set does.
    """
    folder = Path(folder)
    made = folder.with_name(f".{folder.name}.making")
    shutil.rmtree(made, ignore_errors=True)
    facts = scans.set_index("scan")
    kept = []
    try:
        with errors_name_only(folder):
            for shard, table in volumes.items():
                for line, row in enumerate(table.to_dict("records"), start=2):  # line 1 is the header
                    if row["status"] == "ok":
                        place = f"cohort {cohort}, line {line} of {Path(shard).with_suffix('.tsv')}"
                        _export_scan(Path(shard), made, row["scan"], facts.loc[row["scan"]], raw, place)
                        kept.append(row["scan"])
            _describe(made, facts.loc[kept].reset_index(), cohort, title, raw)
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _export_scan(shard: Path, made: Path, scan: str, facts: pd.Series, raw, place: str) -> None:
    session = "" if pd.isna(facts["session"]) else f"ses-{facts['session']}"
    anat = made / f"sub-{facts['subject']}" / session / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    volume, mask = layout.volume_path(shard, scan), layout.mask_path(shard, scan)
    try:
        for path in (volume, mask):
            _link(path, anat / path.name)
        record = json.loads(layout.sidecar_path(shard, scan).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise StudyError(f"{place}: its volume is missing or damaged; delete this table and run again") from None
    recipe = record["method"].get("volume", record["method"])[
        "recipe"
    ]  # of a standardized volume: that of what it was made from
    shared = {"SpatialReference": layout.SPACE, "Resolution": RESOLUTION}
    if raw:
        shared["Sources"] = [f"bids:raw:{Path(facts['path']).relative_to(raw).as_posix()}"]
    _write_json(
        {"SkullStripped": True, **shared, "Intensities": INTENSITIES.get(recipe["intensity"], recipe["intensity"])}
        | {"fedbrain": {name: record[name] for name in ("method", "steps", "quality")}},
        anat / layout.sidecar_path("", scan).name,
    )
    _write_json({"Type": "Brain", **shared}, anat / mask.name.replace(".nii.gz", ".json"))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, target)


def _describe(made: Path, scans: pd.DataFrame, cohort: str, title: str, raw) -> None:
    made.mkdir(parents=True, exist_ok=True)
    version = versions()["fedbrain"]
    description = {
        "Name": f"{title}: {cohort}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "fedbrain", "Version": version}],
    }
    if raw:
        uri = Path(raw).absolute().as_uri()
        description |= {"SourceDatasets": [{"URL": uri}], "DatasetLinks": {"raw": uri}}
    _write_json(description, made / "dataset_description.json")
    people = scans.drop_duplicates("subject")
    words = {"title": title, "cohort": cohort, "version": version, "space": layout.SPACE}
    write_text(README.format(**words, count=len(scans), subjects=len(people)), made / "README")
    table = pd.DataFrame(DESCRIPTIONS.items(), columns=["desc_id", "description"])
    write_table(table, made / "descriptions.tsv")
    # What may change between visits stands with the visits, if there are any.
    once, visits = ["sex", "site"], ["age", "diagnosis"]
    dated = scans[scans["session"].notna()]
    table = people.assign(participant_id="sub-" + people["subject"])
    table[visits] = table[visits].where(table["session"].isna())
    write_table(table[["participant_id", *once, *visits]], made / "participants.tsv")
    _write_json(
        {
            "sex": {"Description": "sex", "Levels": {"F": "female", "M": "male", "O": "other"}},
            "site": {"Description": "scanner or site within the cohort"},
            "age": {"Description": "age at the scan, where there is one visit only", "Units": "year"},
            "diagnosis": {"Description": "as in the cohort's tables, where there is one visit only"},
        },
        made / "participants.json",
    )
    for subject, rows in dated.groupby("subject"):
        rows = rows.assign(session_id="ses-" + rows["session"])
        write_table(rows[["session_id", *visits]], made / f"sub-{subject}" / f"sub-{subject}_sessions.tsv")
    if len(dated):
        _write_json(
            {
                "age": {"Description": "age at the visit", "Units": "year"},
                "diagnosis": {"Description": "at the visit, as in the cohort's tables"},
            },
            made / "sessions.json",
        )


def _write_json(value: Mapping, path: Path) -> None:
    write_text(json.dumps(value, indent=1) + "\n", path)
