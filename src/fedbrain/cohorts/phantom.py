"""Phantom cohorts: whole T1w heads, drawn and not measured, with simulated atrophy in the cases.

They let the whole study run where no data may be had: nothing is downloaded, each scan takes about two seconds, and what
is true is known. Three random streams per subject (anatomy, disease, scanner) are kept apart, so that another scanner
shows the same person and another effect leaves the person's inborn anatomy alone. What the phantoms are good for, and
what they must not be used to conclude, is in docs/phantoms.md.

    python -m fedbrain.cohorts.phantom --picture docs/images/phantoms.png
"""

import argparse
import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from tqdm import tqdm

from fedbrain.cohorts import phantom_anatomy as anatomy
from fedbrain.cohorts import phantom_scanner
from fedbrain.cohorts.phantom_scanner import SCANNERS, acquire, describe, find_scanner
from fedbrain.errors import StudyError
from fedbrain.provenance import digest
from fedbrain.tables import written_atomically

OPTIONS = {  # the options of a phantom cohort, with their defaults
    "controls": 10,  # subjects with diagnosis CN
    "cases": 10,  # subjects with diagnosis AD
    "others": 0,  # subjects with diagnosis MCI, whom a study of CN against AD leaves out
    "followups": 0,  # subjects who come back one to three years later
    "effect": 1.5,  # strength of the disease; at 0 cases are controls by another name
    "age": 71.0,  # mean age in years, the same for all diagnoses
    "scanner": "crisp",  # a name in phantom_scanner.SCANNERS, or a mapping of its parameters
}

_COLUMNS = ("subject", "session", "path", "diagnosis", "age", "sex", "site")


def check_options(name: str, options: Mapping) -> dict:
    """Options with defaults filled in. Raises StudyError, naming the cohort, for unknown keys and impossible values."""
    for key in options:
        if key not in OPTIONS:
            near = get_close_matches(str(key), OPTIONS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise StudyError(f"cohort {name}: unknown phantom option {key!r}; {hint}Known: {', '.join(OPTIONS)}")
    filled = OPTIONS | dict(options)
    for key in ("controls", "cases", "others", "followups"):
        value = filled[key]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 3000:
            raise StudyError(f"cohort {name}: {key} must be a whole number from 0 to 3000, not {value!r}")
    for key, low, high in (("effect", 0.0, 4.0), ("age", 50.0, 90.0)):
        value = filled[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise StudyError(f"cohort {name}: {key} must be a number from {low:g} to {high:g}, not {value!r}")
    people = filled["controls"] + filled["cases"] + filled["others"]
    if filled["followups"] > people:
        raise StudyError(f"cohort {name}: {filled['followups']} followups of {people} subjects; give at most {people}")
    if not any(character.isascii() and character.isalnum() for character in name):
        raise StudyError(f"cohort {name!r}: a phantom cohort's name needs a letter or digit, for its subject ids")
    find_scanner(filled["scanner"], f"cohort {name}: scanner")
    return filled


def plan_cohort(name: str, options: Mapping, seed: int) -> pd.DataFrame:
    """The scan table of a phantom cohort; draws no image.

    Columns: subject, session, path (relative), diagnosis ("CN", "AD", "MCI"), age (years), sex ("F", "M"), site. One row
    per scan, in the order of the subjects. A subject's id, age and sex do not depend on how many others there are, and
    the id says nothing about the diagnosis. Raises StudyError for bad options.
    """
    options = check_options(name, options)
    letters = "".join(character for character in name if character.isascii() and character.isalnum())
    numbers = _stream(seed, name, "numbers").permutation(9999)[:9000] + 1
    people = []
    for start, (diagnosis, count) in enumerate((("CN", options["controls"]), ("AD", options["cases"]),
                                                ("MCI", options["others"]))):  # fmt: skip
        people += [(f"{letters}{number:04d}", diagnosis) for number in numbers[start::3][:count]]
    people.sort()
    chance = {subject: _stream(seed, subject, "follow-up").random() for subject, _ in people}
    returning = set(sorted(chance, key=chance.get)[: options["followups"]])
    rows = []
    for subject, diagnosis in people:
        rng = _stream(seed, subject, "person")
        age = float(np.clip(rng.normal(options["age"], 7.0), 52.0, 92.0))
        sex = "F" if rng.random() < 0.52 else "M"
        gap = rng.uniform(1.0, 3.0)
        for session in ("1", "2") if subject in returning else ("1",):
            stem = f"sub-{subject}_ses-{session}"
            path = f"sub-{subject}/ses-{session}/anat/{stem}_T1w.nii.gz"
            years = round(age + (gap if session == "2" else 0.0), 1)
            rows.append((subject, session, path, diagnosis, years, sex, name))
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(
        {column: "Float64" if column == "age" else "string" for column in _COLUMNS}
    )


def write_cohort(name: str, options: Mapping, seed: int, folder: str | Path, rows: pd.DataFrame | None = None) -> None:
    """Writes the scans of ``rows`` (rows of ``plan_cohort``; default all) below ``folder`` and nothing else.

    A file that is there, is whole and was drawn from the same row, options and seed is left alone. Raises StudyError
    for bad options.
    """
    options = check_options(name, options)
    rows = plan_cohort(name, options, seed) if rows is None else rows
    records = rows.to_dict("records")
    for row in tqdm(records, desc=f"phantoms {name}", unit="scan", mininterval=5):
        path = Path(folder) / row["path"]
        if not _is_drawn(path, scan_fingerprint(row, options, seed)):
            write_scan(row, options, seed, path)


def write_scan(row: Mapping, options: Mapping, seed: int, path: str | Path) -> None:
    """Draws one row of ``plan_cohort`` and writes it to ``path`` (.nii.gz, int16). Same arguments, same bytes."""
    image, _ = draw_scan(row, options, seed)
    # Level 1: noise hardly compresses further. Neither file name nor time go into the gzip header.
    packed = gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
    with written_atomically(path) as temporary:
        temporary.write_bytes(packed)


def draw_scan(row: Mapping, options: Mapping, seed: int) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Draws one row of ``plan_cohort``: the image, and the true brain mask on its grid (bool)."""
    options = OPTIONS | dict(options)
    person, change = _person_and_change(row, options, seed)
    pull = anatomy.atrophy_pull(change)

    def look(points):
        seen = anatomy.look(person, change, pull, points)
        return seen.intensity, seen.brain

    rng = _stream(seed, row["subject"], f"scanner {row['session']}")
    stored, affine, brain = acquire(find_scanner(options["scanner"]), rng, look)
    image = nib.Nifti1Image(stored, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = scan_fingerprint(row, options, seed).encode()
    return image, brain


def true_volumes(row: Mapping, options: Mapping, seed: int) -> dict[str, float]:
    """True volumes (mL) in the head that ``draw_scan`` shows; keys as in ``phantom_anatomy.true_volumes``."""
    person, change = _person_and_change(row, OPTIONS | dict(options), seed)
    return anatomy.true_volumes(person, change)


def _person_and_change(row: Mapping, options: Mapping, seed: int):
    person = anatomy.draw_person(_stream(seed, row["subject"], "anatomy"), row["sex"])
    rng = _stream(seed, row["subject"], "disease")
    severity = rng.lognormal(-0.06, 0.35) * {"CN": 0.0, "MCI": 0.5, "AD": 1.0}[row["diagnosis"]]
    if row["session"] == "2":
        severity *= 1.25
    ageing, disease = anatomy.age_change(float(row["age"])), anatomy.disease_change(severity, rng)
    effect = options["effect"]
    return person, {key: person.volumes[key] + ageing[key] + effect * disease[key] for key in anatomy.STRUCTURES}


def _stream(seed: int, subject: str, purpose: str) -> np.random.Generator:
    """An own random stream for each subject and purpose."""
    key = hashlib.sha256(f"{seed}|{subject}|{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(key[:16], "big"))


def scan_fingerprint(row: Mapping, options: Mapping, seed: int) -> str:
    """What a file is drawn from, as it stands in its NIfTI header; what does not change the image is left out."""
    options = OPTIONS | dict(options)
    who = {key: str(row[key]) for key in ("subject", "session", "diagnosis", "age", "sex")}
    how = {"effect": float(options["effect"]), "scanner": describe(find_scanner(options["scanner"]))}
    return f"fedbrain phantom {digest([_code(), seed, who, how])}"


@cache
def _code() -> str:
    """Digest of the code that draws: a file drawn by other code is drawn again."""
    files = (__file__, anatomy.__file__, phantom_scanner.__file__)
    return digest([Path(path).read_text(encoding="utf-8") for path in files])


def _is_drawn(path: Path, fingerprint: str) -> bool:
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()  # to the end, so that gzip checks its checksum
        header = nib.Nifti1Header(content[:348], check=False)
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        nib.spatialimages.HeaderDataError,
        nib.wrapstruct.WrapStructError,
    ):
        return False
    return header["descrip"].item() == fingerprint.encode()


def draw_picture(path: str | Path, *, scanners=("crisp", "shaded", "grainy", "thick", "fatsat"), seed: int = 1) -> None:
    """Controls, cases and scanners side by side: one control and one case, the same two persons on every scanner."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    people = [
        {"subject": "picture7", "session": "1", "diagnosis": diagnosis, "age": 72.0, "sex": "F"}
        for diagnosis in ("CN", "AD")
    ]
    views = (("coronal", 1, -20.0), ("axial", 2, 6.0), ("sagittal", 0, 3.0))
    figure, axes = plt.subplots(len(scanners), 6, figsize=(14, 2.75 * len(scanners)), facecolor="black")
    for line, scanner in zip(axes, scanners):
        for half, row in zip((line[:3], line[3:]), people):
            options = {"scanner": scanner, "effect": 1.5}
            volumes = true_volumes(row, options, seed)
            image, _ = draw_scan(row, options, seed)
            straight = nib.as_closest_canonical(image)
            data = np.asarray(straight.dataobj, dtype=np.float32)
            sizes = straight.header.get_zooms()
            # A window as a reader would set it: by what is bright in the upper half, which is brain and scalp.
            top = np.percentile(data[:, :, data.shape[2] // 2 :], 99.3)
            for panel, (_, axis, place) in zip(half, views):
                point = [0.0, -20.0, 6.0]
                point[axis] = place
                index = int(np.rint(np.linalg.solve(straight.affine, [*point, 1.0])[axis]))
                plane = np.take(data, np.clip(index, 0, data.shape[axis] - 1), axis)
                rest = [size for other, size in enumerate(sizes) if other != axis]
                panel.imshow(plane.T, cmap="gray", origin="lower", vmin=0, vmax=top, aspect=rest[1] / rest[0])
            word = "control" if row["diagnosis"] == "CN" else "case"
            text = f"{word}: hippocampi {volumes['hippocampus']:.1f} mL, ventricles {volumes['ventricles']:.0f} mL"
            half[0].set_title(text, color="white", fontsize=9, loc="left")
        voxel = " x ".join(f"{size:g}" for size in SCANNERS[scanner].voxel)
        line[0].text(-0.06, 0.5, f"{scanner}\n{voxel} mm", color="white", fontsize=9, rotation=90, ha="center",
                     va="center", transform=line[0].transAxes)  # fmt: skip
    for panel in axes.ravel():
        panel.set_axis_off()
    figure.subplots_adjust(left=0.035, right=1.0, bottom=0.0, top=0.975, wspace=0.02, hspace=0.08)
    with written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=72, facecolor="black", metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw phantom heads.")
    parser.add_argument("--picture", metavar="FILE.png", required=True, help="a control and a case on every scanner")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    draw_picture(arguments.picture, seed=arguments.seed)
    print(json.dumps({"written": str(arguments.picture)}))


if __name__ == "__main__":
    main()
