"""From a BIDS folder to its T1w scans: one per session, by a rule that the config states, and what was passed over.

Only the raw data set is read: sub-*/[ses-*/]anat below the folder itself, so neither derivatives nor sourcedata. An image
takes part if its name says that it is one whole T1w scan; of several in a session, the filters of ``t1w`` and its
``choose`` decide. Nothing is opened but tables and, where the scanner is asked for, JSON sidecars.

BIDS 1.10, https://bids-specification.readthedocs.io
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from fedbrain.cohorts.intake import COLUMNS, check_rows
from fedbrain.cohorts.scanners import describe_scanner
from fedbrain.errors import StudyError
from fedbrain.tables import PASSED_OVER, TEXT

ORDER = ("task", "acq", "ce", "rec", "run", "echo", "part")  # of the entities in a name, as BIDS has it
FILTERS = ("acq", "ce", "rec", "run", "echo")  # what ``t1w`` may ask for
PLAIN = ("task", "acq", "rec", "run")  # what a whole, native T1w scan may carry unasked
IMAGE = re.compile(r"sub-(?P<subject>[^_]+)_(?:.*_)?T1w\.nii(?:\.gz)?")
SIDECAR = re.compile(r"(?:.*_)?T1w\.json")
PAIR = re.compile(r"[a-z]+-[A-Za-z0-9]+")
SEX = {"f": "F", "female": "F", "m": "M", "male": "M", "o": "O", "other": "O"}
CONTRAST = "contrast-enhanced (ce); t1w.ce takes it"


@dataclass(frozen=True)
class Image:
    """A T1w file of a session."""

    path: str
    entities: Mapping[str, str]  # without sub and ses


def read_bids(
    folder: str | Path, schema: Mapping, *, cohort: str, diagnosis_column: str, t1w: Mapping, scanners: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Finds the T1w scans of a BIDS folder, with the facts of participants.tsv and, over them, of sessions.tsv.

    Args:
        folder: the raw data set.
        schema: of a scan table.
        cohort: its name, for messages.
        diagnosis_column: of participants.tsv or of the sessions tables.
        t1w: filters by entity (a value, a list in order of preference, None for "without it") and ``choose``: ``first``
            or ``last`` of what is left, by the entities in the order of BIDS (run-2 before run-10), or ``only``.
        scanners: whether to read field strength and scanner from the JSON sidecars, which inherit from folders above.
    Returns:
        The rows (intake.COLUMNS and ``reason``, why a participant or session has no scan), and the T1w images that were
        not taken (tables.PASSED_OVER).
    Raises:
        StudyError: for a folder that is no raw BIDS data set, tables that do not fit, names that contradict their folder,
            and several scans of a session where ``choose`` is ``only``.
    """
    folder = Path(folder)
    _check_folder(folder, cohort)
    columns, people = _people(folder / "participants.tsv", cohort)
    ignored = _ignored(folder)
    top = _listed(folder)
    subjects = sorted(name for name in top.folders if name.startswith("sub-"))
    rows, passed = [], []
    for subject in subjects:
        person = people.get(subject, {})
        place = _listed(folder / subject)
        names = [None, *sorted(name for name in place.folders if name.startswith("ses-"))]
        visits = _visits(folder / subject, cohort, columns) if len(names) > 1 else {}
        found = []
        for session in names:
            inner = place if session is None else _listed(folder / subject / session)
            if "anat" not in inner.folders:
                continue
            anat = _listed(folder / subject / (session or "") / "anat")
            images, unfit = _images(anat, subject, session, folder, ignored, cohort)
            chosen, others = _choose(images, t1w, f"cohort {cohort}: {subject}" + (f"/{session}" if session else ""))
            unfit += others
            if chosen or unfit:
                reason = pd.NA if chosen else "no usable T1w scan: " + "; ".join(sorted({why for _, why in unfit}))
                facts = {**person, **visits.get(session, {})}
                found.append(_row(subject, session, chosen and chosen.path, facts, diagnosis_column, reason))
                levels = (top, place, anat) if session is None else (top, place, inner, anat)
                found[-1] |= _scanner(chosen, levels) if scanners and chosen else {}
            for path, why in unfit:
                passed.append(_row(subject, session, path, {}, "", why) | {"chosen": chosen.path if chosen else pd.NA})
        rows += found or [_row(subject, None, None, person, diagnosis_column, "no T1w scan")]
    if not any(row["path"] for row in rows):
        raise StudyError(
            f"cohort {cohort}: no sub-*/[ses-*/]anat/*_T1w.nii[.gz] under {folder} that can be taken"
            + (f" ({passed[0]['reason']})" if passed else "")
            + f"; correct cohorts.{cohort}.bids or cohorts.{cohort}.t1w"
        )
    if diagnosis_column not in columns:
        raise StudyError(
            f"cohort {cohort}: the tables of {folder} have the columns {', '.join(columns)}, but none named "
            f"{diagnosis_column!r}; name the diagnosis column in cohorts.{cohort}.diagnosis_column"
        )
    for row in rows:  # a scan of nobody has no diagnosis; a participant without a folder has no scan
        if "sub-" + row["subject"] not in people and pd.isna(row["reason"]):
            row["reason"] = "no row in participants.tsv"
    rows += [
        _row(name, None, None, people[name], diagnosis_column, "no T1w scan") for name in people.keys() - set(subjects)
    ]
    frame = pd.DataFrame(rows).reindex(columns=[*COLUMNS, "reason"]).astype(TEXT)
    frame = frame.sort_values(["subject", "session"], na_position="first", kind="stable", ignore_index=True)
    frame["sex"] = frame["sex"].str.lower().map(SEX).astype(TEXT).fillna(frame["sex"])
    check_rows(frame, schema, f"cohort {cohort}: {folder / 'participants.tsv'}")
    return frame, pd.DataFrame(passed, columns=list(PASSED_OVER)).astype(PASSED_OVER)


def _row(subject, session, path, facts: Mapping, diagnosis_column: str, reason) -> dict:
    return {
        "subject": subject.removeprefix("sub-"),
        "session": session.removeprefix("ses-") if session else pd.NA,
        "path": path,
        "diagnosis": facts.get(diagnosis_column),
        "reason": reason,
    } | {column: facts.get(column) for column in ("age", "sex", "site")}


# Which images ---------------------------------------------------------------------------------------------------------


def _images(anat, subject, session, folder, ignored, cohort) -> tuple[list[Image], list[tuple[str, str]]]:
    """The images of a session that may be one whole T1w scan, and those that may not, with the reason."""
    images, unfit = [], []
    start = f"{subject}_" + (f"{session}_" if session else "")
    for name in sorted(anat.files):
        if not IMAGE.fullmatch(name):
            continue
        path = os.path.join(anat.path, name)
        if ignored and ignored(os.path.relpath(path, folder)):
            continue
        if not name.startswith(start) or (session is None and "_ses-" in name):
            raise StudyError(
                f"cohort {cohort}: {path} lies in the folder of {subject}{f'/{session}' if session else ''}, which its "
                "name contradicts; move or rename it, or list it in .bidsignore"
            )
        pairs = name[len(start) :].split("_")[:-1]
        entities = dict(pair.split("-", 1) for pair in pairs if PAIR.fullmatch(pair))
        if len(entities) < len(pairs):
            unfit.append((path, "its name is not BIDS"))
        elif extra := [entity for entity in entities if entity not in ORDER]:
            unfit.append((path, f"a part or a derivative of a scan ({', '.join(extra)})"))
        elif entities.get("part", "mag") != "mag":
            unfit.append((path, f"not the magnitude (part-{entities['part']})"))
        else:
            images.append(Image(path, entities))
    return images, unfit


def _choose(images: list[Image], t1w: Mapping, place: str) -> tuple[Image | None, list[tuple[str, str]]]:
    """The image that stands for a session (None where none fits), and the others with the reason."""
    wanted = {
        entity: t1w[entity] if isinstance(t1w[entity], list) else [t1w[entity]] for entity in FILTERS if entity in t1w
    }
    fitting, others = [], []
    for image in images:
        ranks = [_rank(image.entities.get(entity), values) for entity, values in wanted.items()]
        unasked = [entity for entity in image.entities if entity not in (*PLAIN, "part", *wanted)]
        if None in ranks:
            named = [entity for entity, rank in zip(wanted, ranks) if rank is None]
            others.append((image.path, f"does not fit t1w ({', '.join(named)})"))
        elif unasked:
            others.append((image.path, CONTRAST if "ce" in unasked else "one echo of several; t1w.echo takes it"))
        else:
            fitting.append((ranks, image))
    if not fitting:
        return None, others
    best = min(ranks for ranks, _ in fitting)
    equal = sorted((image for ranks, image in fitting if ranks == best), key=_position)
    if t1w["choose"] == "only" and len(equal) > 1:
        raise StudyError(
            f"{place} has {len(equal)} T1w scans: {', '.join(os.path.basename(image.path) for image in equal)}; say in its "
            "cohort's t1w which one is meant (acq, rec, run, ...), or choose: first"
        )
    chosen = equal[-1 if t1w["choose"] == "last" else 0]
    others += [(image.path, "another T1w of this session was chosen") for _, image in fitting if image is not chosen]
    return chosen, others


def _rank(value: str | None, wanted: Iterable) -> int | None:
    """The place of an entity's value in a list of preference; None where it is not there. run-01 is run 1."""
    for rank, other in enumerate(wanted):
        if value is None or other is None:
            same = value is other
        else:
            same = value == str(other) or (value.isdigit() and str(other).isdigit() and int(value) == int(other))
        if same:
            return rank
    return None


def _position(image: Image) -> tuple:
    """Where an image stands among those of its session: without an entity before with it, numbers as numbers."""
    values = (image.entities.get(entity) for entity in ORDER)
    return tuple(() if value is None else (_natural(value),) for value in values), image.path


def _natural(value: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", value)]


# Folders and tables ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Folder:
    path: str
    folders: frozenset[str]
    files: frozenset[str]  # links that lead nowhere are among them: a scan that is not fetched is a scan


def _listed(path: str | Path) -> _Folder:
    folders, files = set(), set()
    with os.scandir(path) as entries:
        for entry in entries:
            (folders if entry.is_dir() else files).add(entry.name)
    return _Folder(str(path), frozenset(folders), frozenset(files))


def _check_folder(folder: Path, cohort: str) -> None:
    key = f"cohorts.{cohort}.bids"
    if not folder.is_dir():
        beside = [entry.name for entry in os.scandir(folder.parent) if entry.is_dir()] if folder.parent.is_dir() else []
        near = get_close_matches(folder.name, beside, n=1)
        hint = f"; did you mean {folder.parent / near[0]}?" if near else ""
        raise StudyError(f"cohort {cohort}: no folder {folder}{hint} Correct {key}")
    if not (folder / "participants.tsv").is_file():
        inside = sorted(path.parent for path in folder.glob("*/participants.tsv") if path.parent.name != "derivatives")
        raise StudyError(
            f"cohort {cohort}: no {folder / 'participants.tsv'}; a BIDS cohort needs it"
            + (
                f". There is one in {', '.join(map(str, inside[:3]))}: is that the data set? Correct {key}"
                if inside
                else ""
            )
        )
    description = folder / "dataset_description.json"
    if description.is_file() and _json(description).get("DatasetType") == "derivative":
        raise StudyError(
            f"cohort {cohort}: {folder} is a derivative data set, whose images are not as the scanner made them; give the "
            f"raw one in {key}, or name the files in a scan table"
        )


def _read_rows(path: Path, cohort: str) -> tuple[list[str], list[dict]]:
    """The columns and rows of a small table; faster than pandas, since there is a sessions table per subject."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            rows = [
                {
                    name: value.strip()
                    for name, value in row.items()
                    if name and value and value.strip() not in ("", "n/a")
                }
                for row in reader
            ]
            return [name for name in reader.fieldnames or [] if name], rows
    except (csv.Error, UnicodeDecodeError, AttributeError) as error:
        raise StudyError(f"cohort {cohort}: {path} is not a tab-separated table with a header: {error}") from error


def _people(path: Path, cohort: str) -> tuple[list[str], dict[str, dict]]:
    columns, rows = _read_rows(path, cohort)
    if "participant_id" not in columns:
        raise StudyError(
            f"cohort {cohort}: {path} has no column participant_id; it has {', '.join(columns)}. Columns are separated by "
            "tabs and named in the first line"
        )
    people = _by_id(rows, "participant_id", "sub-")
    if people is None:
        raise StudyError(
            f"cohort {cohort}: {path} lists a participant twice, or a row without one; keep one row each, and what changes "
            "between visits in sub-*/sub-*_sessions.tsv"
        )
    return columns, people


def _visits(folder: Path, cohort: str, columns: list[str]) -> dict[str, dict]:
    """What the sessions table of a subject says of each session; its columns are added to ``columns``."""
    table = folder / f"{folder.name}_sessions.tsv"
    if not table.is_file():
        return {}
    mine, rows = _read_rows(table, cohort)
    if "session_id" not in mine:
        raise StudyError(f"cohort {cohort}: {table} has no column session_id; it has {', '.join(mine)}")
    visits = _by_id(rows, "session_id", "ses-")
    if visits is None:
        raise StudyError(f"cohort {cohort}: {table} lists a session twice, or a row without one; keep one row each")
    columns += [name for name in mine if name not in columns]
    return visits


def _by_id(rows: list[dict], column: str, prefix: str) -> dict[str, dict] | None:
    """Rows by their id, with its prefix; None where an id is missing or there twice."""
    result = {prefix + row[column].removeprefix(prefix): row for row in rows if column in row}
    return result if len(result) == len(rows) else None


def _ignored(folder: Path):
    """Whether .bidsignore lists a path (relative to the data set), as a function; None without that file."""
    path = folder / ".bidsignore"
    if not path.is_file():
        return None
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8").splitlines()).match_file


# Scanners -------------------------------------------------------------------------------------------------------------


def _scanner(image: Image, levels: Iterable[_Folder]) -> dict:
    """Field strength and scanner of an image from its sidecars; those nearer to it win (BIDS' inheritance principle)."""
    own = set(os.path.basename(image.path).split("_")[:-1])
    facts: dict = {}
    for level in levels:
        names = [name for name in level.files if SIDECAR.fullmatch(name) and set(name.split("_")[:-1]) <= own]
        for name in sorted(names, key=lambda name: name.count("_")):
            facts |= _json(Path(level.path, name))
    return describe_scanner(facts)


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}  # a sidecar describes a scan and decides nothing about it
    return value if isinstance(value, dict) else {}
