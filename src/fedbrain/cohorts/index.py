"""The index of the study's scans: refreshed each time the workflow is started, written only where it changed.

It is to scans what git's index is to files. A scan's fingerprint is its size and time stamp when its content was first
seen; a scan that was merely touched (same SHA-256 as when it was preprocessed) keeps the fingerprint. So a manifest per
shard changes when, and only when, one of its scans does, and everything that hangs on a shard's manifest runs again
then and only then.

    {root}/index.json               scans per shard, scans in and out, per cohort
    {root}/{cohort}/scans.tsv       the scans that take part (tables.SCANS)
    {root}/{cohort}/excluded.tsv    the scans left out, and why (tables.EXCLUDED)
    {root}/{cohort}/passed_over.tsv T1w images of a BIDS folder that were not taken, and why (tables.PASSED_OVER)
    {root}/{cohort}/scanners.tsv    what is known of each scan's scanner (tables.SCANNERS)
    {root}/{cohort}/shards/{n}.tsv  the manifest of a shard (tables.MANIFEST)
    {root}/{cohort}/dicom/{n}.tsv   the DICOM folders of a shard, where it has some (tables.DICOM)
    {root}/{cohort}/.stat.tsv       time stamps of touched scans, so that they are read once only
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISDIR

import pandas as pd
from tqdm import tqdm

from fedbrain.cohorts import bids, dicom, intake
from fedbrain.cohorts.splits import digest_of_dropped
from fedbrain.imaging import outliers
from fedbrain.provenance import digest, sha256_of
from fedbrain.study.config import cohort_labels
from fedbrain.tables import (
    DICOM,
    MANIFEST,
    MISSING,
    PASSED_OVER,
    SCANNERS,
    SCANS,
    TEXT,
    VOLUMES,
    read_table,
    write_text,
)

OF_SHARDS = {  # the folders of a cohort in which files and folders are named by shard, and the shards that they are of
    "volumes/*": "shards",
    "standardized/*": "shards",
    "embeddings/*/*/*": "shards",
    "nifti/*": "dicom",
}
OF_COHORTS = ("cohorts/*/", "phantoms/*/", "quality/*", "derivatives/*/")  # named by cohort
STAT = {
    "scan": TEXT,
    "stat": TEXT,  # size and time stamp of the scan, as last seen
    "scan_print": TEXT,  # the same, as they were when this content was first seen
    "mask_stat": TEXT,
    "mask_print": TEXT,  # SHA-256 of the provided mask
    "fingerprint": TEXT,
}


def refresh(
    config: Mapping,
    schema: Mapping,
    *,
    root: str | Path,
    volumes: str | Path,
    phantoms: str | Path,
    nifti: str | Path,
) -> dict:
    """Reads every cohort's table, checks it, and brings the index under ``root`` up to date.

    ``volumes`` and ``nifti`` are the folders of the shard tables of earlier runs (their SHA-256 tell touched scans and DICOM
    folders from changed ones); scans converted from DICOM are written below ``nifti``, simulated ones below ``phantoms``.
    Returns what index.json holds: cohort -> {"shards": {shard: scans}, "dicom": {shard: scans}, "included": n,
    "excluded": n}.
    """
    root, volumes, phantoms, nifti = Path(root), Path(volumes), Path(phantoms), Path(nifti)
    masked = config["preprocessing"]["extractor"] == "provided"
    index = {}
    for cohort, options in config["cohorts"].items():
        frame, passed_over = read_cohort(config, schema, cohort, phantoms=phantoms)
        labels = cohort_labels(config, cohort)
        scans, excluded = intake.select(frame, cohort=cohort, labels=labels, exclude=options["exclude"])
        if not masked:
            scans["mask"] = pd.NA  # not read, so neither looked for nor part of what makes a scan new
        scans["shard"] = [shard_of(subject, options["shards"]) for subject in scans["subject"]]
        folder = root / cohort
        if "phantom" in options:
            scans["fingerprint"] = _phantom_fingerprints(scans, options["phantom"], config["seed"])
        else:
            intake.check_files(scans, cohort=cohort)
            if options["links"] == "inside":
                place = options["bids"] if "bids" in options else Path(options["table"]).parent
                intake.check_links(scans, place, cohort=cohort)
            scans["fingerprint"] = _fingerprints(scans, folder / ".stat.tsv", volumes / cohort, nifti / cohort, cohort)
        converted = scans["dicom"].notna()
        if converted.any():
            dicom.check_installed(cohort)
        scans["path"] = [
            dicom.nifti_path(nifti / cohort / str(row.shard), row.scan) if is_folder else row.path
            for row, is_folder in zip(scans.itertuples(), converted)
        ]
        _write_if_changed(scans[list(SCANS)], folder / "scans.tsv")
        _write_if_changed(scans[list(SCANNERS)], folder / "scanners.tsv")
        _write_if_changed(excluded, folder / "excluded.tsv")
        _write_if_changed(passed_over, folder / "passed_over.tsv")
        shards = _write_shards(scans[["shard", *MANIFEST]], folder / "shards")
        folders = _write_shards(scans.loc[converted, ["shard", *DICOM]], folder / "dicom")
        index[cohort] = {
            "shards": shards,
            "dicom": folders,
            "included": len(scans),
            "excluded": len(excluded),
        }
    write_json(index, root / "index.json")
    return index


def _write_shards(rows: pd.DataFrame, folder: Path) -> dict[str, int]:
    """Writes the rows of each shard (without the column ``shard``), and no others; returns how many each has."""
    shards = {str(shard): part.drop(columns="shard") for shard, part in rows.groupby("shard")}
    for shard, part in shards.items():
        _write_if_changed(part, folder / f"{shard}.tsv")
    for path in folder.glob("*.tsv"):
        if path.stem not in shards:
            path.unlink()
    return {shard: len(part) for shard, part in shards.items()}


def dropping(config: Mapping, index: Mapping, *, volumes: str | Path, record: str | Path) -> str:
    """What stands for the scans that the config's ``quality`` drops: it changes when, and only when, they do.

    Snakemake would split and train again after any job that assesses quality, and with any threshold among its parameters. So
    the split assesses for itself, by the thresholds of the study that was started, and what makes it run again is this: the assessment
    made on the tables that are there, compared with what the last split was made without, as its ``record`` says.
    """
    assessed = {}
    for cohort, of in index.items() if config["quality"]["drop"] != "none" else ():
        tables = [Path(volumes) / cohort / f"{shard}.tsv" for shard in of["shards"]]
        assessed[cohort] = outliers.assess(outliers.read_shards(filter(Path.is_file, tables)), config["quality"])
    now = digest_of_dropped(outliers.dropped_scans(assessed))
    record = Path(record)
    made = json.loads(record.read_text(encoding="utf-8"))["parameters"] if record.is_file() else {}
    if "dropped" not in made:
        return now
    # Another set must be another value than the last one, even where that was found before there was a table to assess.
    return made["dropping"] if made["dropped"] == now else digest([made["dropping"], now])


def left_over(index: Mapping, results: str | Path) -> dict[str, list[str]]:
    """What lies in ``results`` of cohorts or shards that the study no longer has: names by the folder that they lie in.

    It is never deleted silently, but somebody must know of it: data that was withdrawn may be among it.
    """
    found: dict[str, list[str]] = {}
    for folders, of in OF_SHARDS.items():
        for folder in filter(Path.is_dir, Path(results).glob(folders)):
            shards = index.get(folder.name, {}).get(of)
            if not shards:
                found.setdefault(str(folder.parent), []).append(folder.name)
                continue
            numbers = {path.name: re.match(r"(\d+)([._]|$)", path.name) for path in folder.iterdir()}
            gone = [name for name, number in numbers.items() if number and number[1] not in shards]
            found |= {str(folder): gone} if gone else {}
    for pattern in OF_COHORTS:
        for path in Path(results).glob(pattern):
            if (path.is_dir() or path.suffix in (".tsv", ".html")) and path.name.removesuffix(path.suffix) not in index:
                found.setdefault(str(path.parent), []).append(path.name)
    return {folder: sorted(names) for folder, names in sorted(found.items())}


def read_index(root: str | Path) -> dict:
    """What the last refresh found; for the jobs of a running workflow, which must all see the same."""
    return json.loads((Path(root) / "index.json").read_text(encoding="utf-8"))


def file_sha256(path: str, *, cache: str | Path) -> str:
    """SHA-256 of a large file, computed again only if its size or time stamp changed; the word itself for "random"."""
    if path == "random":
        return path
    known = json.loads(Path(cache).read_text(encoding="utf-8")) if Path(cache).is_file() else {}
    if known.get("path") != str(path) or known.get("stat") != _stat(path):
        known = {"path": str(path), "stat": _stat(path), "sha256": sha256_of(path)}
        write_json(known, cache)
    return known["sha256"]


def write_json(value, path: str | Path) -> None:
    """Writes ``value`` as JSON, if the file does not hold it already."""
    _write_text_if_changed(json.dumps(value, indent=1) + "\n", Path(path))


def read_cohort(config: Mapping, schema: Mapping, cohort: str, *, phantoms: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All rows of one cohort (intake.COLUMNS), whatever its source, and the images passed over (PASSED_OVER)."""
    options, none = config["cohorts"][cohort], pd.DataFrame(columns=list(PASSED_OVER))
    if "table" in options:
        return intake.read_scan_table(options["table"], schema, cohort=cohort), none
    if "bids" in options:
        asked = {"field_strength", "scanner"} & set(config["evaluation"]["subgroups"]["attributes"])
        return bids.read_bids(
            options["bids"],
            schema,
            cohort=cohort,
            diagnosis_column=options["diagnosis_column"],
            t1w=options["t1w"],
            scanners=bool(asked),
        )
    from fedbrain.cohorts.phantom import plan_cohort

    plan = plan_cohort(cohort, options["phantom"], config["seed"]).reindex(columns=list(intake.COLUMNS))
    plan["path"] = [str(phantoms / cohort / path) for path in plan["path"]]
    return plan, none


def shard_of(subject: str, shards: int) -> int:
    """The shard of a subject: a hash of its id, so that a new subject moves no other and all visits stay together."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8]) % shards


def _phantom_fingerprints(scans: pd.DataFrame, options: Mapping, seed: int) -> list[str]:
    # A simulated scan is known by what it is drawn from: it may not be there yet.
    from fedbrain.cohorts.phantom import scan_fingerprint

    return [scan_fingerprint(row, options, seed) for row in scans.to_dict("records")]


def _fingerprints(scans: pd.DataFrame, cache: Path, volumes: Path, nifti: Path, cohort: str) -> list[str]:
    known = read_table(cache, STAT) if cache.is_file() else pd.DataFrame(columns=list(STAT))
    known = {row.scan: row for row in known.itertuples(index=False)}
    sources = scans["dicom"].fillna(scans["path"])  # what was measured: a file, or a folder of DICOM files
    stats = {scan: _stat(source) for scan, source in zip(scans["scan"], sources)}
    moved = [scan for scan, stat in stats.items() if scan in known and known[scan].stat != stat]
    # A volume made from DICOM records the NIfTI file between them, so that what the conversion records comes over it.
    contents = _recorded_contents(volumes) | _recorded_contents(nifti) if moved else {}
    rows = []
    # Only scans with a new time stamp are read; the bar shows where there are enough of them to wait for.
    bar = tqdm(total=len(moved), desc=f"{cohort}: comparing scans with a new time stamp", delay=5, unit="scan")
    for scan, source, mask in zip(scans["scan"], sources, scans["mask"]):
        stat, old = stats[scan], known.get(scan)
        scan_print = stat
        if old is not None and (old.stat == stat or _is_same(source, contents.get((scan, old.fingerprint)))):
            scan_print = old.scan_print
        bar.update(old is not None and old.stat != stat)
        mask_stat = None if pd.isna(mask) else _stat(mask)
        mask_print = None
        if mask_stat:  # a mask is small: its content itself is the fingerprint
            same = old is not None and old.mask_stat == mask_stat and old.mask_print != dicom.UNREADABLE
            mask_print = old.mask_print if same else _mask_print(mask)
        fingerprint = f"{scan_print}+{mask_print}" if mask_print else scan_print
        rows.append((scan, stat, scan_print, mask_stat, mask_print, fingerprint))
    bar.close()
    _write_if_changed(pd.DataFrame(rows, columns=list(STAT)), cache)
    return [row[-1] for row in rows]


def _mask_print(path: str) -> str:
    try:
        return sha256_of(path)[:16]
    except PermissionError:
        return dicom.UNREADABLE  # its scan becomes a row with this reason


def _stat(path: str) -> str:
    status = os.stat(path)
    if S_ISDIR(status.st_mode):
        return dicom.folder_stat(path)
    return f"{status.st_size}-{status.st_mtime_ns}"


def _is_same(path: str, recorded: tuple[int, str] | None) -> bool:
    """Whether a file or folder has the recorded size and SHA-256; one that cannot be read has not."""
    if recorded is None:
        return False
    try:
        if os.path.isdir(path):
            return dicom.folder_sha256(path) == recorded[1]
        return os.path.getsize(path) == recorded[0] and sha256_of(path) == recorded[1]
    except OSError:
        return False


def _recorded_contents(folder: Path) -> dict[tuple[str, str], tuple[int, str]]:
    """Size and SHA-256 by scan and fingerprint, from shard tables of volumes or conversions."""
    contents = {}
    types = {name: VOLUMES[name] for name in ("scan", "fingerprint", "size", "sha256")}
    for path in sorted(folder.glob("*.tsv")):
        if path.stem.isdigit():
            table = read_table(path, types).dropna(subset=["sha256"])
            for row in table.itertuples(index=False):
                contents[(row.scan, row.fingerprint)] = (int(row.size), row.sha256)
    return contents


def _write_if_changed(frame: pd.DataFrame, path: Path) -> None:
    buffer = io.StringIO()
    frame.to_csv(buffer, sep="\t", index=False, na_rep=MISSING, lineterminator="\n")
    _write_text_if_changed(buffer.getvalue(), path)


def _write_text_if_changed(text: str, path: Path) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(text, path)
