"""Folders of DICOM files: seen at the start, turned into NIfTI by dcm2niix, one T1w series each.

dcm2niix (Li et al., J. Neurosci. Methods 2016, https://github.com/rordenlab/dcm2niix) does the conversion. What is ours is
the choice of the series, the refusal of series with gaps, and that no name travels: dcm2niix sees links with numbers in
place of the files, so that its words cannot hold a name, and of what it tells about a scan only fields without persons,
places and times are kept.
"""

import gzip
import io
import json
import logging
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from fedbrain.cohorts.scanners import describe_scanner
from fedbrain.errors import StudyError
from fedbrain.provenance import digest, sha256_of
from fedbrain.shard_folders import errors_name_only, held
from fedbrain.tables import CONVERSIONS, write_text, written_atomically

logger = logging.getLogger(__name__)

UNREADABLE = "unreadable"
KEPT = (  # fields of dcm2niix's sidecar: the image and the scanner, no person, place or time
    "MagneticFieldStrength", "Manufacturer", "ManufacturersModelName", "MRAcquisitionType", "SeriesNumber",
    "SeriesDescription", "ProtocolName", "ImageType", "SliceThickness", "EchoTime", "RepetitionTime", "InversionTime",
    "FlipAngle", "ConversionSoftware", "ConversionSoftwareVersion",
)  # fmt: skip
NOT_PERMITTED = (
    "a file or folder of it may not be read; give the account of this run read permission, delete the shard's table in "
    "results/nifti and run again"
)
ARGUMENTS = ("-g", "i", "-b", "y", "-ba", "y", "-c", "", "-z", "n", "-d", "0", "-f", "%s")


class Refused(Exception):
    """This folder gives no scan. The message says why; it is the ``reason`` in the scan's row."""


class NotPermitted(Refused):
    """The account may not read the folder now. That says nothing about the scan: what was made of it before stays."""


class Stopped(Exception):
    """dcm2niix was stopped by the machine, which is no fault of the files."""


@dataclass(frozen=True)
class Series:
    """One image that dcm2niix made."""

    path: Path
    facts: Mapping

    @property
    def name(self) -> str:
        """Its number and description, as a person at the scanner knows it."""
        echo = f", echo {self.facts['EchoNumber']}" if "EchoNumber" in self.facts else ""
        return f"{self.facts.get('SeriesNumber', '?')} {self._described()[0]}".strip() + echo

    def fits(self, pattern: str) -> bool:
        """Whether its description or protocol fits a pattern such as ``*mprage*``."""
        return any(fnmatch(text.lower(), pattern.lower()) for text in self._described())

    def _described(self) -> tuple[str, str]:
        return tuple(str(self.facts.get(key, "")) for key in ("SeriesDescription", "ProtocolName"))


def check_installed(cohort: str) -> None:
    """Raises StudyError where dcm2niix is missing."""
    try:
        version("dcm2niix")
    except PackageNotFoundError:
        raise StudyError(
            f"cohort {cohort}: its scan table names DICOM folders, which dcm2niix converts; pip install 'fedbrain[dicom]'"
        ) from None


def nifti_path(folder: str | Path, scan: str) -> str:
    """Where the scan lies once it is converted."""
    return str(Path(folder) / f"{scan}_T1w.nii.gz")


def folder_files(folder: str | Path) -> list[str]:
    """All files below a folder, sorted; without hidden ones and the index DICOMDIR. Links are followed, each folder once.

    A link that leads nowhere is listed, too. Raises OSError where the folder, or one below it, is not there or cannot be listed.
    """
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(place)
        if real in seen:  # a link back, or a second one
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.join(place, name) for name in names if not name.startswith(".") and name.upper() != "DICOMDIR"
        ]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def folder_stat(folder: str | Path) -> str:
    """Bytes, and a digest of the names, sizes and time stamps of a folder's files; nothing is read.

    The word UNREADABLE where the account may not look into it: its scan becomes a row with this reason, and another one later.
    """
    try:
        states = [(path[len(str(folder)) :], os.stat(path)) for path in folder_files(folder)]
    except PermissionError:
        return UNREADABLE
    size = sum(state.st_size for _, state in states)
    return f"{size}-{digest([(name, state.st_size, state.st_mtime_ns) for name, state in states])}"


def folder_sha256(folder: str | Path) -> str:
    """A digest of the contents of a folder's files, in the order of their names."""
    return digest([sha256_of(path) for path in folder_files(folder)])


def convert_shard(rows: pd.DataFrame, folder: str | Path, t1w: Mapping, *, cohort: str) -> pd.DataFrame:
    """Turns the DICOM folders of a shard into one NIfTI file and one JSON sidecar each; keeps what is made already.

    Args:
        rows: tables.DICOM.
        folder: where the files go; those of scans that are no longer listed, or that fail now, are removed; those of a scan
            whose folder the account may not read now stay, without a good row.
        t1w: ``series`` (patterns of descriptions or protocols, the first that fits counts) and ``choose``.
        cohort: its name, for messages.
    Returns:
        tables.CONVERSIONS, in the order of ``rows``. A folder that gives no scan is a row ``failed`` with a reason.
    Raises:
        StudyError: where a folder that was there at the start is gone, a disk fails while it is read, or another process
            works on ``folder``; never for a bad series.
        OSError: where files cannot be written. Its path is ``folder``, which names no subject.
    """
    folder = Path(folder)
    with errors_name_only(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with held(folder), errors_name_only(folder):
        return _convert_all(rows, folder, t1w, cohort)


def _convert_all(rows: pd.DataFrame, folder: Path, t1w: Mapping, cohort: str) -> pd.DataFrame:
    targets = [Path(nifti_path(folder, scan)) for scan in rows["scan"]]
    wanted = {path.name for target in targets for path in (target, _sidecar(target))}
    for path in folder.iterdir():  # what has left the shard, and what a killed job left half written; nothing else
        if path.name.endswith(("_T1w.nii.gz", "_T1w.json")) and path.name not in wanted:
            path.unlink()
    table = []
    for line, row in enumerate(
        tqdm(rows.to_dict("records"), desc=f"{cohort}: DICOM", unit="scan", mininterval=5), start=2
    ):
        start = time.perf_counter()
        said = {"scan": row["scan"], "fingerprint": row["fingerprint"], "reused": 0}
        target = Path(nifti_path(folder, row["scan"]))
        place = f"cohort {cohort}, line {line} of the shard's DICOM folders"  # not the path, which names the subject
        try:
            files, contents = _read(row["dicom"], place)
            said |= contents
            said |= _convert_or_reuse(files, said["sha256"], target, t1w)
        except Refused as refusal:
            for path in () if isinstance(refusal, NotPermitted) else (_sidecar(target), target):
                path.unlink(missing_ok=True)
            said |= {"status": "failed", "reason": " ".join(str(refusal).split())}
        except Stopped as stop:
            raise StudyError(f"{place}: {stop}; run again, with more memory or fewer jobs at once") from None
        table.append(said | {"seconds": round(time.perf_counter() - start, 3)})
    table = pd.DataFrame(table, columns=list(CONVERSIONS)).astype(CONVERSIONS)
    logger.info("%d DICOM folders, %d failed", len(table), int((table["status"] == "failed").sum()))
    return table


def _read(folder: str, place: str) -> tuple[list[str], dict]:
    """A folder's files, and their ``size`` and ``sha256``."""
    try:
        files = folder_files(folder)
        return files, {"size": sum(map(os.path.getsize, files)), "sha256": folder_sha256(folder)}
    except PermissionError:
        raise NotPermitted(NOT_PERMITTED) from None
    except OSError as error:  # the path would name the subject in the log
        raise StudyError(
            f"{place}: cannot be read now ({error.strerror or type(error).__name__}), though it was there at the start; see "
            "that its disk is mounted here and sound, and run again. What is made stays"
        ) from None


def _sidecar(target: Path) -> Path:
    return target.with_name(target.name.removesuffix(".nii.gz") + ".json")


def _convert_or_reuse(files: list[str], contents: str, target: Path, t1w: Mapping) -> dict:
    """Writes image and sidecar, unless they are there, made of the same files in the same way; returns the row's facts."""
    if not files:
        raise Refused("the folder holds no files")
    key = digest([contents, dict(t1w), version("dcm2niix"), Path(__file__).read_text(encoding="utf-8")])
    record = _kept(target, key)
    reused = record is not None
    if record is None:
        with tempfile.TemporaryDirectory() as work:
            chosen, others = _converted(files, Path(work), t1w)
            packed = gzip.compress(_without_words(chosen.path), compresslevel=1, mtime=0)
        _sidecar(target).unlink(missing_ok=True)  # an old record must not outlive its image
        with written_atomically(target) as temporary:
            temporary.write_bytes(packed)
        made = {
            "key": key,
            "bytes": len(packed),
            "series": chosen.name,
            "passed_over": [other.name for other in others],
        }
        record = {name: chosen.facts[name] for name in KEPT if name in chosen.facts} | {"fedbrain": made}
        write_text(json.dumps(record, indent=1) + "\n", _sidecar(target))
    made, scanner = record["fedbrain"], describe_scanner(record)
    return {
        "status": "ok",
        "series": made["series"],
        "passed_over": "; ".join(made["passed_over"]) or None,
        "field_strength": scanner["field_strength"] and float(scanner["field_strength"]),
        "scanner": scanner["scanner"],
        "reused": int(reused),
    }


def _kept(target: Path, key: str) -> dict | None:
    try:
        record = json.loads(_sidecar(target).read_text(encoding="utf-8"))
        return (
            record
            if record["fedbrain"]["key"] == key and target.stat().st_size == record["fedbrain"]["bytes"]
            else None
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _converted(files: list[str], work: Path, t1w: Mapping) -> tuple[Series, list[Series]]:
    """The series that is the scan, below ``work``, and the other 3D ones. Raises Refused."""
    import dcm2niix

    links, made = work / "in", work / "out"
    links.mkdir(), made.mkdir()
    for number, path in enumerate(files, start=1):
        (links / f"{number:06d}").symlink_to(os.path.abspath(path))
    done = subprocess.run(
        [dcm2niix.bin, *ARGUMENTS, "-o", str(made), str(links)], capture_output=True, text=True, errors="replace"
    )
    if done.returncode in (-signal.SIGKILL, -signal.SIGTERM):  # a crash is the files' fault, this is not
        raise Stopped("dcm2niix was stopped, perhaps for want of memory")
    words = _words(done.stdout + done.stderr, work)
    series = [Series(path.with_suffix(".nii"), json.loads(path.read_text())) for path in sorted(made.glob("*.json"))]
    if not series:
        if done.returncode == 2:
            raise Refused("no DICOM image among the files of the folder")
        raise Refused(f"dcm2niix made no image: {words or f'it ended with {done.returncode}'}")
    whole = sorted((one for one in series if _is_whole(one)), key=_position)
    if not whole:
        listed = ", ".join(one.name for one in sorted(series, key=_position))
        raise Refused(f"no series in the folder is one 3D volume: {listed}" + (f"; dcm2niix: {words}" if words else ""))
    chosen = _choose(whole, t1w)
    if list(made.glob(f"{chosen.path.stem}_Eq*")) or re.search(r"\d+_Eq", chosen.path.stem):
        raise Refused(f"slices of series {chosen.name} are missing or unevenly spaced; dcm2niix: {words}")
    return chosen, [one for one in whole if one is not chosen]


def _is_whole(series: Series) -> bool:
    """Whether it is one magnitude volume that is no localizer."""
    import nibabel  # here, since the start of a workflow imports this module, too

    from fedbrain.imaging.reading import FEWEST_VOXELS

    shape = nibabel.load(series.path).shape
    parts = {"PHASE", "REAL", "IMAGINARY"} & set(map(str, series.facts.get("ImageType", [])))
    return not parts and len(shape) == 3 and min(shape) >= FEWEST_VOXELS


def _choose(whole: list[Series], t1w: Mapping) -> Series:
    listed = ", ".join(one.name for one in whole)
    if not t1w.get("series"):
        if len(whole) > 1:
            raise Refused(
                f"{len(whole)} series in the folder: {listed}; say in the cohort's t1w.series which one is meant"
            )
        return whole[0]
    for pattern in t1w["series"]:
        fitting = [one for one in whole if one.fits(pattern)]
        if len(fitting) > 1 and t1w["choose"] == "only":
            named = ", ".join(one.name for one in fitting)
            raise Refused(
                f"{len(fitting)} series fit t1w.series {pattern}: {named}; choose first or last, or narrow it"
            )
        if fitting:
            return fitting[-1 if t1w["choose"] == "last" else 0]
    raise Refused(f"no series fits t1w.series {', '.join(t1w['series'])}; there are {listed}")


def _without_words(path: Path) -> bytes:
    """The content of a NIfTI file with the texts of its header left empty: dcm2niix writes the time of day into one."""
    import nibabel

    content = path.read_bytes()
    header = type(nibabel.load(path).header).from_fileobj(io.BytesIO(content))
    for field in ("descrip", "aux_file", "intent_name"):
        header[field] = b""
    return header.binaryblock + content[len(header.binaryblock) :]


def _position(series: Series) -> tuple:
    number = series.facts.get("SeriesNumber", 0)
    return (number if isinstance(number, int) else 0), series.path.name


def _words(output: str, work: Path) -> str:
    """What dcm2niix warns of, without paths; the files have numbers in the order of their names."""
    lines = [line.strip() for line in output.splitlines() if re.match(r"\s*(warning|error)", line, re.IGNORECASE)]
    lines = [line.replace(f"{work / 'in'}/", "file ").replace(f"{work}/", "") for line in lines]
    return " ".join(dict.fromkeys(lines))[:500]
