"""Scan tables: read and checked, and the scans that take part told from those left out, with the reason.

A row that cannot be right (an age of 300, a file that is not there, two rows for one scan) is an error that names the
row and the mend; a row that the study leaves out on purpose (a diagnosis outside the label map, the exclude list) is
kept in the excluded table with its reason.
"""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jsonschema import Draft202012Validator

from fedbrain.cohorts import dicom
from fedbrain.errors import StudyError
from fedbrain.tables import EXCLUDED, SCANS, TEXT

LONGEST_POINTER = 32_768  # bytes, of git-annex' stand-in for a file
ON_EXCLUDE_LIST = "on the exclude list of the config"  # a reason in the table EXCLUDED
SHOWN = 5  # problems printed before "and N more"
COLUMNS = (
    "subject",
    "session",
    "path",
    "dicom",
    "mask",
    "diagnosis",
    "age",
    "sex",
    "site",
    "field_strength",
    "scanner",
)
ALONGSIDE = ("dicom", "field_strength", "scanner")  # known of a scan, and in tables of their own
TOP_CODED = re.compile(r"(>?)\s*(\d+)\s*(\+?)")  # ages of anonymised data sets


def read_scan_table(path: str | Path, schema: Mapping, *, cohort: str) -> pd.DataFrame:
    """Reads and checks a scan table.

    The columns are COLUMNS, text but for age and field_strength, paths joined to the table's folder; each row has either a
    path or a folder of DICOM files.
    """
    path = Path(path)
    if not path.is_file():
        raise StudyError(
            f"cohort {cohort}: no scan table {path}; write it (docs/cohorts.md) or correct cohorts.{cohort}.table"
        )
    frame = _read_text_table(path, cohort)
    needed = [name for name in schema["required"] if not (name == "path" and "dicom" in frame.columns)]
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise StudyError(
            f"cohort {cohort}: {path} has no column {', '.join(missing)}; it has {', '.join(frame.columns)}. Columns "
            "are separated by tabs and named in the first line"
        )
    frame = frame.reindex(columns=list(COLUMNS))
    frame["line"] = pd.array(range(2, len(frame) + 2), dtype="Int64")  # as an editor counts, after the header
    check_rows(frame, schema, f"cohort {cohort}: {path}")
    unclear = frame.loc[frame["path"].isna() == frame["dicom"].isna(), "line"]
    if len(unclear):
        raise StudyError(
            f"cohort {cohort}: {path}, line {unclear.iloc[0]}"
            + (f" and {len(unclear) - 1} more" if len(unclear) > 1 else "")
            + ": a row needs either a path (NIfTI file) or dicom (folder of DICOM files)"
        )
    for column in ("path", "dicom", "mask"):
        frame[column] = [value if pd.isna(value) else str(path.parent / value) for value in frame[column]]
    return frame


def check_files(frame: pd.DataFrame, *, cohort: str) -> None:
    """Raises StudyError for scans, masks, DICOM folders or files in these that are not there, naming the first few."""
    absent, annexed, lost = [], [], []
    for column in ("path", "mask", "dicom"):
        for value in frame[column].dropna():
            found = _what_is_at(value)
            if found == "annexed":
                annexed.append(value)
            elif found != ("folder" if column == "dicom" else "file"):
                absent.append(value)
            elif found == "folder":
                within = {path: _what_is_at(path) for path in _files_in(value, cohort)}
                annexed += [path for path, what in within.items() if what == "annexed"]
                lost += [path for path, what in within.items() if what is None]
    for paths, what, mend in (
        (
            lost,
            "entries of its DICOM folders are links that lead nowhere, or no files",
            "fetch them with datalad get (or git annex get) where the data set is managed so, or take them out",
        ),
        (annexed, "files of its data set are not fetched yet", "fetch them with datalad get (or git annex get)"),
        (
            absent,
            "files of its scan table are not there",
            "correct the paths (relative to the table's folder) or take the rows out",
        ),
    ):
        if paths:
            raise StudyError(
                f"cohort {cohort}: {len(paths)} {what}: {', '.join(paths[:SHOWN])}"
                + (f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")
                + f"; {mend}"
            )


def check_links(frame: pd.DataFrame, folder: str | Path, *, cohort: str) -> None:
    """Raises StudyError for scans, masks, DICOM folders or files in these that lie outside of ``folder`` once links are followed."""
    inside = os.path.realpath(folder) + os.sep
    outside, folders = [], set(frame["dicom"].dropna())
    for path in pd.concat([frame["path"], frame["mask"], frame["dicom"]]).dropna():
        # What a folder that lies inside has within it may lie anywhere; of one that lies outside, its name is enough.
        is_outside = not os.path.realpath(path).startswith(inside)
        within = _files_in(path, cohort) if path in folders and not is_outside else []
        outside += [path] if is_outside else [one for one in within if not os.path.realpath(one).startswith(inside)]
    if outside:
        raise StudyError(
            f"cohort {cohort}: {len(outside)} files lie outside of {folder}, or links lead there: "
            f"{', '.join(outside[:SHOWN])}; copy them in, take them out, or set cohorts.{cohort}.links to follow"
        )


def _files_in(folder: str, cohort: str) -> list[str]:
    """The files of a DICOM folder; none where it may not be looked into, which becomes the reason of its row."""
    try:
        return dicom.folder_files(folder)
    except PermissionError:
        return []
    except OSError as error:
        raise StudyError(
            f"cohort {cohort}: the folder {folder} cannot be listed ({error.strerror or type(error).__name__}); see that its "
            "disk is mounted here and sound, and run again"
        ) from None


def _what_is_at(path: str) -> str | None:
    """``file``, ``folder``, ``annexed`` (its content is still elsewhere: a pointer, or a link that leads nowhere), ``forbidden``,
    where it may not be asked, or None.
    """
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return "annexed" if os.path.islink(path) and "annex" in Path(os.readlink(path)).parts else None
    except PermissionError:
        return "forbidden"
    except OSError:
        return None
    if stat.S_ISDIR(state.st_mode):
        return "folder"
    if stat.S_ISREG(state.st_mode) and state.st_size <= LONGEST_POINTER:
        try:
            with open(path, "rb") as file:
                return "annexed" if file.read(LONGEST_POINTER).startswith(b"/annex/objects/") else "file"
        except OSError:
            return "file"  # a row with its reason, when the shard runs
    return "file" if stat.S_ISREG(state.st_mode) else None


def select(
    frame: pd.DataFrame, *, cohort: str, labels: Mapping[str, int], exclude: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Splits the rows into those that take part and those left out (EXCLUDED).

    A row that has a ``reason`` already stays out with it, unless its diagnosis or the exclude list leaves it out anyway.
    Those that take part have the columns of SCANS, without fingerprint and shard, and ALONGSIDE.
    Raises StudyError where two rows stand for one scan, an exclude entry fits no row, or nothing is left.
    """
    frame = frame.copy()
    frame["scan"] = [scan_id(subject, session) for subject, session in zip(frame["subject"], frame["session"])]
    if "line" not in frame.columns:
        frame["line"] = pd.array([pd.NA] * len(frame), dtype="Int64")
    for column, what, mend in (
        ("scan", "two rows for the scan", "give each visit its own session, or take one row out"),
        ("path", "two rows name the file", "one file is one scan: correct a path, or take one row out"),
        ("dicom", "two rows name the folder", "one folder is one scan: correct a path, or take one row out"),
    ):
        twice = frame[column].dropna()[frame[column].dropna().duplicated()]
        if len(twice):
            lines = frame.loc[frame[column] == twice.iloc[0], "line"].dropna()
            where = f" (lines {', '.join(map(str, lines))})" if len(lines) else ""
            raise StudyError(f"cohort {cohort}: {what} {twice.iloc[0]}{where}; {mend}")
    unknown = [
        entry for entry in exclude if not ((frame["scan"] == entry) | ("sub-" + frame["subject"] == entry)).any()
    ]
    if unknown:
        raise StudyError(
            f"cohorts.{cohort}.exclude: {', '.join(unknown[:SHOWN])} fits no scan; write sub-x or sub-x_ses-y"
        )

    diagnosis = frame["diagnosis"]
    known = frame["reason"] if "reason" in frame.columns else pd.Series(pd.NA, index=frame.index, dtype=TEXT)
    reason = known.copy()
    strange = diagnosis.notna() & ~diagnosis.isin(list(labels))
    reason[strange] = "diagnosis " + diagnosis[strange] + " is not among the study's labels"
    reason[diagnosis.isna() & known.isna()] = "no diagnosis"
    reason[frame["scan"].isin(exclude) | ("sub-" + frame["subject"]).isin(exclude)] = ON_EXCLUDE_LIST
    frame["reason"] = reason
    frame["row"] = frame["line"]
    frame["label"] = frame["diagnosis"].map(labels).astype("Int64")
    out = frame[frame["reason"].notna()]
    kept = frame[frame["reason"].isna()]
    if not len(kept):
        raise StudyError(
            f"cohort {cohort}: no scan is left; the diagnoses are {', '.join(sorted(set(frame['diagnosis'].dropna())))}, "
            f"the labels {', '.join(labels)}. Add them to labels, or to cohorts.{cohort}.labels"
        )
    columns = [column for column in SCANS if column not in ("fingerprint", "shard")] + list(ALONGSIDE)
    return kept[columns].reset_index(drop=True), out[list(EXCLUDED)].reset_index(drop=True)


def scan_id(subject: str, session: str | None) -> str:
    """``sub-x`` or ``sub-x_ses-y``."""
    return f"sub-{subject}" if pd.isna(session) else f"sub-{subject}_ses-{session}"


def _read_text_table(path: Path, cohort: str) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep="\t", dtype=TEXT, na_values=["n/a", ""], keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise StudyError(f"cohort {cohort}: {path} is not a tab-separated table with a header: {error}") from error


def check_rows(frame: pd.DataFrame, schema: Mapping, place: str) -> None:
    """Checks each column's values against the schema and makes ``age`` and ``field_strength`` numbers, in place.

    Raises StudyError that names ``place`` and the first wrong rows.
    """
    ages = frame["age"].map(_years, na_action="ignore")
    columns = {"age": ages, "field_strength": frame["field_strength"]}
    columns = {name: pd.to_numeric(column, errors="coerce").astype("Float64") for name, column in columns.items()}
    numbers = {name: dict(zip(frame[name], column)) for name, column in columns.items()}
    problems = []
    for column in COLUMNS:
        validator = Draft202012Validator(schema["properties"][column])
        for text in frame[column].unique():
            value = None if pd.isna(text) else text
            if column in numbers and value is not None and not pd.isna(numbers[column][text]):
                value = float(numbers[column][text])
            if not validator.is_valid(value):
                found = "is empty" if value is None else f"is {text!r}"
                expected = schema["properties"][column]["description"]
                rows = frame[frame[column].isna() if value is None else frame[column] == text]
                where = [
                    f"line {row['line']}" if "line" in row else f"sub-{row['subject']}" for _, row in rows.iterrows()
                ]
                problems += [f"{place}, {name}, column {column} {found}; expected: {expected}" for name in where]
    if problems:
        more = f"\nand {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise StudyError("\n".join(problems[:SHOWN]) + more)
    for name, column in columns.items():
        frame[name] = column


def _years(text: str) -> str:
    """The lower bound of an age that an anonymised data set gives as ``89+`` (89) or ``>89`` (90); else the text itself."""
    found = TOP_CODED.fullmatch(text.strip())
    if not found or not (found[1] or found[3]):
        return text
    return str(int(found[2]) + (found[1] == ">"))
