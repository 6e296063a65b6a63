"""From a scan table, a BIDS folder or a phantom plan to the scans that take part, and those left out with the reason.

A row that cannot be right (an age of 300, a file that is not there, two rows for one scan) is an error that names the
row and the mend; a row that the study leaves out on purpose (a diagnosis outside the label map, the exclude list) is
kept in the excluded table with its reason.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jsonschema import Draft202012Validator

from fedbrain.errors import StudyError
from fedbrain.tables import EXCLUDED, SCANS, TEXT

SHOWN = 5  # problems printed before "and N more"
COLUMNS = ("subject", "session", "path", "mask", "diagnosis", "age", "sex", "site")
T1W = re.compile(r"sub-(?P<subject>[A-Za-z0-9]+)(?:_ses-(?P<session>[A-Za-z0-9]+))?_(?:.*_)?T1w\.nii(?:\.gz)?$")


def read_scan_table(path: str | Path, schema: Mapping, *, cohort: str) -> pd.DataFrame:
    """Reads and checks a scan table; the columns are COLUMNS, text but for age, paths joined to the table's folder."""
    path = Path(path)
    if not path.is_file():
        raise StudyError(
            f"cohort {cohort}: no scan table {path}; write it (docs/cohorts.md) or correct cohorts.{cohort}.table"
        )
    frame = _read_text_table(path, cohort)
    missing = [name for name in schema["required"] if name not in frame.columns]
    if missing:
        raise StudyError(
            f"cohort {cohort}: {path} has no column {', '.join(missing)}; it has {', '.join(frame.columns)}. Columns "
            "are separated by tabs and named in the first line"
        )
    frame = frame.reindex(columns=list(COLUMNS))
    frame["line"] = pd.array(range(2, len(frame) + 2), dtype="Int64")  # as an editor counts, after the header
    _check_rows(frame, schema, f"cohort {cohort}: {path}")
    for column in ("path", "mask"):
        frame[column] = [value if pd.isna(value) else str(path.parent / value) for value in frame[column]]
    return frame


def read_bids(folder: str | Path, schema: Mapping, *, cohort: str, diagnosis_column: str) -> pd.DataFrame:
    """Finds the T1w scans of a BIDS folder, with diagnosis, age, sex and site of participants.tsv (sessions.tsv over it).

    One scan per session: where there are several T1w files (runs, acquisitions) the first by name is taken.
    """
    folder = Path(folder)
    participants = folder / "participants.tsv"
    if not participants.is_file():
        raise StudyError(
            f"cohort {cohort}: no {participants}; a BIDS cohort needs it, with a column {diagnosis_column!r}"
        )
    people = _read_text_table(participants, cohort)
    if diagnosis_column not in people.columns or "participant_id" not in people.columns:
        raise StudyError(
            f"cohort {cohort}: {participants} has the columns {', '.join(people.columns)}, but participant_id and "
            f"{diagnosis_column!r} are needed; name the diagnosis column in cohorts.{cohort}.diagnosis_column"
        )
    people = people.set_index("participant_id")
    if people.index.has_duplicates:
        raise StudyError(f"cohort {cohort}: {participants} lists a participant twice; keep one row each")
    rows = []
    for subject in sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name.startswith("sub-")
    ):
        person = people.loc[subject] if subject in people.index else pd.Series(dtype=object)
        visits = _sessions(folder / subject, cohort)
        for session in sorted(visits) or [None]:
            found = _t1w_files(folder / subject / (session or ""))
            if not found:
                continue
            facts = {**person, **visits.get(session, {})}
            rows.append(
                {
                    "subject": subject.removeprefix("sub-"),
                    "session": session.removeprefix("ses-") if session else pd.NA,
                    "path": str(found[0]),
                    "diagnosis": facts.get(diagnosis_column, pd.NA),
                    "age": facts.get("age", pd.NA),
                    "sex": facts.get("sex", pd.NA),
                    "site": facts.get("site", pd.NA),
                }
            )
    if not rows:
        raise StudyError(f"cohort {cohort}: no sub-*/[ses-*/]anat/*_T1w.nii[.gz] under {folder}")
    frame = pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype(TEXT)
    frame["sex"] = frame["sex"].str.upper().str[:1].where(frame["sex"].notna())
    _check_rows(frame, schema, f"cohort {cohort}: {participants}")
    return frame


def check_files(frame: pd.DataFrame, *, cohort: str) -> None:
    """Raises StudyError for scans or masks that are not there, naming the first few."""
    absent = [
        value
        for column in ("path", "mask")
        for value in frame[column]
        if not pd.isna(value) and not os.path.isfile(value)
    ]
    if absent:
        raise StudyError(
            f"cohort {cohort}: {len(absent)} files of its scan table are not there: {', '.join(absent[:SHOWN])}"
            + (f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else "")
            + "; correct the paths (relative to the table's folder) or take the rows out"
        )


def select(
    frame: pd.DataFrame, *, cohort: str, labels: Mapping[str, int], exclude: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Splits the rows into those that take part (SCANS, without fingerprint and shard) and those left out (EXCLUDED).

    Raises StudyError where two rows stand for one scan, an exclude entry fits no row, or nothing is left.
    """
    frame = frame.copy()
    frame["scan"] = [scan_id(subject, session) for subject, session in zip(frame["subject"], frame["session"])]
    if "line" not in frame.columns:
        frame["line"] = pd.array([pd.NA] * len(frame), dtype="Int64")
    for column, what, mend in (
        ("scan", "two rows for the scan", "give each visit its own session, or take one row out"),
        ("path", "two rows name the file", "one file is one scan: correct a path, or take one row out"),
    ):
        twice = frame[column][frame[column].duplicated()]
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
    reason = pd.Series(pd.NA, index=frame.index, dtype=TEXT)
    strange = diagnosis.notna() & ~diagnosis.isin(list(labels))
    reason[strange] = "diagnosis " + diagnosis[strange] + " is not among the study's labels"
    reason[diagnosis.isna()] = "no diagnosis"
    reason[frame["scan"].isin(exclude) | ("sub-" + frame["subject"]).isin(exclude)] = (
        "on the exclude list of the config"
    )
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
    columns = [column for column in SCANS if column not in ("fingerprint", "shard")]
    return kept[columns].reset_index(drop=True), out[list(EXCLUDED)].reset_index(drop=True)


def scan_id(subject: str, session: str | None) -> str:
    """``sub-x`` or ``sub-x_ses-y``."""
    return f"sub-{subject}" if pd.isna(session) else f"sub-{subject}_ses-{session}"


def _read_text_table(path: Path, cohort: str) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep="\t", dtype=TEXT, na_values=["n/a", ""], keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise StudyError(f"cohort {cohort}: {path} is not a tab-separated table with a header: {error}") from error


def _check_rows(frame: pd.DataFrame, schema: Mapping, place: str) -> None:
    """Checks each column's values against the schema and makes ``age`` a number, in place."""
    ages = pd.to_numeric(frame["age"], errors="coerce").astype("Float64")
    numbers = dict(zip(frame["age"], ages))
    problems = []
    for column in COLUMNS:
        validator = Draft202012Validator(schema["properties"][column])
        for text in frame[column].unique():
            value = None if pd.isna(text) else text
            if column == "age" and value is not None and not pd.isna(numbers[text]):
                value = float(numbers[text])
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
    frame["age"] = ages


def _sessions(folder: Path, cohort: str) -> dict[str, dict]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name.startswith("ses-"))
    table = folder / f"{folder.name}_sessions.tsv"
    facts = {}
    if names and table.is_file():
        frame = _read_text_table(table, cohort)
        if "session_id" not in frame.columns:
            raise StudyError(f"cohort {cohort}: {table} has no column session_id; it has {', '.join(frame.columns)}")
        facts = {
            row["session_id"]: {k: v for k, v in row.items() if not pd.isna(v)} for row in frame.to_dict("records")
        }
    return {name: facts.get(name, {}) for name in names}


def _t1w_files(folder: Path) -> list[Path]:
    anat = folder / "anat"
    return sorted(path for path in anat.iterdir() if T1W.match(path.name)) if anat.is_dir() else []
