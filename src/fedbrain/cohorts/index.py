"""The index of the study's scans: refreshed each time the workflow is started, written only where it changed.

It is to scans what git's index is to files. A scan's fingerprint is its size and time stamp when its content was first
seen; a scan that was merely touched (same SHA-256 as when it was preprocessed) keeps the fingerprint. So a manifest per
shard changes when, and only when, one of its scans does, and everything that hangs on a shard's manifest runs again
then and only then.

    {root}/index.json               scans per shard, scans in and out, per cohort
    {root}/{cohort}/scans.tsv       the scans that take part (tables.SCANS)
    {root}/{cohort}/excluded.tsv    the scans left out, and why (tables.EXCLUDED)
    {root}/{cohort}/shards/{n}.tsv  the manifest of a shard (tables.MANIFEST)
    {root}/{cohort}/.stat.tsv       time stamps of touched scans, so that they are read once only
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from fedbrain.cohorts import intake
from fedbrain.provenance import sha256_of
from fedbrain.study.config import cohort_labels
from fedbrain.tables import MANIFEST, MISSING, SCANS, TEXT, VOLUMES, read_table, write_text

STAT = {
    "scan": TEXT,
    "stat": TEXT,  # size and time stamp of the scan, as last seen
    "scan_print": TEXT,  # the same, as they were when this content was first seen
    "mask_stat": TEXT,
    "mask_print": TEXT,  # SHA-256 of the provided mask
    "fingerprint": TEXT,
}


def refresh(config: Mapping, schema: Mapping, *, root: str | Path, volumes: str | Path, phantoms: str | Path) -> dict:
    """Reads every cohort's table, checks it, and brings the index under ``root`` up to date.

    ``volumes`` is the folder of the shard tables of earlier runs (their SHA-256 tell touched scans from changed ones),
    ``phantoms`` the folder under which simulated scans are written. Returns what index.json holds:
    cohort -> {"shards": {shard: scans}, "included": n, "excluded": n}.
    """
    root, volumes, phantoms = Path(root), Path(volumes), Path(phantoms)
    masked = config["preprocessing"]["extractor"] == "provided"
    index = {}
    for cohort, options in config["cohorts"].items():
        frame = read_cohort(config, schema, cohort, phantoms=phantoms)
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
            scans["fingerprint"] = _fingerprints(scans, folder / ".stat.tsv", volumes / cohort, cohort)
        _write_if_changed(scans[list(SCANS)], folder / "scans.tsv")
        _write_if_changed(excluded, folder / "excluded.tsv")
        shards = {int(shard): part for shard, part in scans.groupby("shard")}
        for shard, part in shards.items():
            _write_if_changed(part[list(MANIFEST)], folder / "shards" / f"{shard}.tsv")
        for path in (folder / "shards").glob("*.tsv"):
            if int(path.stem) not in shards:
                path.unlink()
        index[cohort] = {
            "shards": {str(shard): len(part) for shard, part in shards.items()},
            "included": len(scans),
            "excluded": len(excluded),
        }
    write_json(index, root / "index.json")
    return index


def left_over(index: Mapping, volumes: str | Path) -> list[Path]:
    """Shard tables of cohorts or shards that the study no longer has; their volumes and embeddings are still on disk.

    They are never deleted silently, but somebody must know of them: data that was withdrawn may be among them.
    """
    tables = (path for path in Path(volumes).glob("*/*.tsv") if path.stem.isdigit())
    return sorted(path for path in tables if path.stem not in index.get(path.parent.name, {}).get("shards", {}))


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


def read_cohort(config: Mapping, schema: Mapping, cohort: str, *, phantoms: Path) -> pd.DataFrame:
    """All rows of one cohort (intake.COLUMNS), whatever its source."""
    options = config["cohorts"][cohort]
    if "table" in options:
        return intake.read_scan_table(options["table"], schema, cohort=cohort)
    if "bids" in options:
        return intake.read_bids(options["bids"], schema, cohort=cohort, diagnosis_column=options["diagnosis_column"])
    from fedbrain.cohorts.phantom import plan_cohort

    plan = plan_cohort(cohort, options["phantom"], config["seed"]).reindex(columns=list(intake.COLUMNS))
    plan["path"] = [str(phantoms / cohort / path) for path in plan["path"]]
    return plan


def shard_of(subject: str, shards: int) -> int:
    """The shard of a subject: a hash of its id, so that a new subject moves no other and all visits stay together."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8]) % shards


def _phantom_fingerprints(scans: pd.DataFrame, options: Mapping, seed: int) -> list[str]:
    # A simulated scan is known by what it is drawn from: it may not be there yet.
    from fedbrain.cohorts.phantom import scan_fingerprint

    return [scan_fingerprint(row, options, seed) for row in scans.to_dict("records")]


def _fingerprints(scans: pd.DataFrame, cache: Path, volumes: Path, cohort: str) -> list[str]:
    known = read_table(cache, STAT) if cache.is_file() else pd.DataFrame(columns=list(STAT))
    known = {row.scan: row for row in known.itertuples(index=False)}
    stats = {scan: _stat(path) for scan, path in zip(scans["scan"], scans["path"])}
    moved = [scan for scan, stat in stats.items() if scan in known and known[scan].stat != stat]
    contents = _recorded_contents(volumes) if moved else {}
    rows = []
    # Only scans with a new time stamp are read; the bar shows where there are enough of them to wait for.
    bar = tqdm(total=len(moved), desc=f"{cohort}: comparing scans with a new time stamp", delay=5, unit="scan")
    for scan, path, mask in zip(scans["scan"], scans["path"], scans["mask"]):
        stat, old = stats[scan], known.get(scan)
        scan_print = stat
        if old is not None and (old.stat == stat or _is_same(path, contents.get((scan, old.fingerprint)))):
            scan_print = old.scan_print
        bar.update(old is not None and old.stat != stat)
        mask_stat = None if pd.isna(mask) else _stat(mask)
        mask_print = None
        if mask_stat:  # a mask is small: its content itself is the fingerprint
            same = old is not None and old.mask_stat == mask_stat
            mask_print = old.mask_print if same else sha256_of(mask)[:16]
        fingerprint = f"{scan_print}+{mask_print}" if mask_print else scan_print
        rows.append((scan, stat, scan_print, mask_stat, mask_print, fingerprint))
    bar.close()
    _write_if_changed(pd.DataFrame(rows, columns=list(STAT)), cache)
    return [row[-1] for row in rows]


def _stat(path: str) -> str:
    status = os.stat(path)
    return f"{status.st_size}-{status.st_mtime_ns}"


def _is_same(path: str, recorded: tuple[int, str] | None) -> bool:
    """Whether a file has the recorded size and SHA-256; one that cannot be read has not."""
    if recorded is None or os.path.getsize(path) != recorded[0]:
        return False
    try:
        return sha256_of(path) == recorded[1]
    except OSError:
        return False


def _recorded_contents(folder: Path) -> dict[tuple[str, str], tuple[int, str]]:
    contents = {}
    for path in sorted(folder.glob("*.tsv")):
        if path.stem.isdigit():
            table = read_table(path, VOLUMES).dropna(subset=["sha256"])
            for row in table[["scan", "fingerprint", "size", "sha256"]].itertuples(index=False):
                contents[(row.scan, row.fingerprint)] = (int(row.size), row.sha256)
    return contents


def _write_if_changed(frame: pd.DataFrame, path: Path) -> None:
    buffer = io.StringIO()
    frame.to_csv(buffer, sep="\t", index=False, na_rep=MISSING, lineterminator="\n")
    _write_text_if_changed(buffer.getvalue(), path)


def _write_text_if_changed(text: str, path: Path) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(text, path)
