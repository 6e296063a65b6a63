"""How long the start of a study takes to see its scans: a BIDS folder, and DICOM folders beside plain stat calls.

python benchmarks/intake.py [--subjects 10000] [--folders 200]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import yaml

from fedbrain.cohorts.bids import read_bids
from fedbrain.cohorts.dicom import folder_stat

SCHEMA = Path(__file__).parents[1] / "rules/schemas/scans.schema.yaml"
FILES = 192  # slices of a DICOM folder


def seconds(call, *arguments, **options) -> float:
    start = time.perf_counter()
    call(*arguments, **options)
    return time.perf_counter() - start


def walk(folder: Path) -> None:
    """What no listing can do without: every name once."""
    for _ in os.walk(folder):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=10_000, help="with two sessions of two T1w images each")
    parser.add_argument("--folders", type=int, default=200, help=f"of {FILES} DICOM files")
    arguments = parser.parse_args()
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as work:
        folder, lines = Path(work, "bids"), ["participant_id\tdiagnosis\tage\tsex"]
        for number in range(arguments.subjects):
            name = f"sub-{number:05d}"
            lines.append(f"{name}\t{'AD' if number % 3 else 'CN'}\t{55 + number % 40}\t{'FM'[number % 2]}")
            for session in ("ses-M00", "ses-M12"):
                anat = folder / name / session / "anat"
                anat.mkdir(parents=True)
                for run in (1, 2):
                    (anat / f"{name}_{session}_run-{run}_T1w.nii.gz").touch()
                    sidecar = {
                        "MagneticFieldStrength": 3,
                        "Manufacturer": "Siemens",
                        "ManufacturersModelName": "Prisma",
                    }
                    (anat / f"{name}_{session}_run-{run}_T1w.json").write_text(json.dumps(sidecar))
            (folder / name / f"{name}_sessions.tsv").write_text("session_id\tage\nses-M00\t70\nses-M12\t71\n")
        (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
        asked = {"cohort": "a", "diagnosis_column": "diagnosis", "t1w": {"choose": "first"}}
        print(f"BIDS, {arguments.subjects} subjects, {4 * arguments.subjects} T1w images")
        print(f"  walking the folder      {seconds(walk, folder):8.2f} s")
        print(f"  reading it              {seconds(read_bids, folder, schema, **asked):8.2f} s")
        print(f"  with the JSON sidecars  {seconds(read_bids, folder, schema, scanners=True, **asked):8.2f} s")
        for number in range(arguments.folders):
            place = Path(work, "dicom", str(number))
            place.mkdir(parents=True)
            for slice_ in range(FILES):
                (place / f"{slice_}.dcm").touch()
        stat = seconds(lambda: [folder_stat(path) for path in Path(work, "dicom").iterdir()])
        print(
            f"DICOM, {arguments.folders} folders of {FILES} files: {stat:.2f} s, {1e3 * stat / arguments.folders:.1f} ms each"
        )


if __name__ == "__main__":
    main()
