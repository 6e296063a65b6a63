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
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fedbrain.cohorts import intake
from fedbrain.provenance import digest, sha256_of
from fedbrain.study.config import cohort_labels
from fedbrain.tables import MANIFEST, MISSING, SCANS, TEXT, VOLUMES, read_table, write_text

logger = logging.getLogger(__name__)

STAT = {"scan": TEXT, "stat": TEXT, "fingerprint": TEXT}


def refresh(config: Mapping, schema: Mapping, *, root: str | Path, volumes: str | Path, phantoms: str | Path) -> dict:
    """Reads every cohort's table, checks it, and brings the index under ``root`` up to date.

    ``volumes`` is the folder of the shard tables of earlier runs (their SHA-256 tell touched scans from changed ones),
    ``phantoms`` the folder under which simulated scans are written. Returns what index.json holds:
    cohort -> {"shards": {shard: scans}, "included": n, "excluded": n}.
    """
    root, volumes, phantoms = Path(root), Path(volumes), Path(phantoms)
    index = {}
    for cohort, options in config["cohorts"].items():
        frame = read_cohort(config, schema, cohort, phantoms=phantoms)
        labels = cohort_labels(config, cohort)
        scans, excluded = intake.select(frame, cohort=cohort, labels=labels, exclude=options["exclude"])
        scans["shard"] = [shard_of(subject, options["shards"]) for subject in scans["subject"]]
        folder = root / cohort
        if "phantom" in options:
            # A simulated scan is known by its recipe: it may not be there yet.
            recipe = digest({"options": options["phantom"], "seed": config["seed"]})
            scans["fingerprint"] = [f"phantom-{recipe}"] * len(scans)
        else:
            intake.check_files(frame, cohort=cohort)
            scans["fingerprint"] = _fingerprints(scans, folder / ".stat.tsv", volumes / cohort)
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
    _write_text_if_changed(json.dumps(index, indent=1) + "\n", root / "index.json")
    return index


def read_index(root: str | Path) -> dict:
    """What the last refresh found; for the jobs of a running workflow, which must all see the same."""
    return json.loads((Path(root) / "index.json").read_text(encoding="utf-8"))


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


def _fingerprints(scans: pd.DataFrame, cache: Path, volumes: Path) -> list[str]:
    stats = {}
    for scan, path in zip(scans["scan"], scans["path"]):
        status = os.stat(path)
        stats[scan] = f"{status.st_size}-{status.st_mtime_ns}"
    known = (
        read_table(cache, STAT).set_index("scan") if cache.is_file() else pd.DataFrame(columns=["stat", "fingerprint"])
    )
    known = dict(zip(known.index, zip(known["stat"], known["fingerprint"])))
    moved = [scan for scan, stat in stats.items() if scan in known and known[scan][0] != stat]
    contents = _recorded_contents(volumes) if moved else {}
    paths = dict(zip(scans["scan"], scans["path"]))
    if moved:
        logger.info("index: %d scans have a new time stamp; comparing contents", len(moved))
    result = {}
    for scan, stat in stats.items():
        fingerprint = stat
        if scan in known:
            old_stat, old_fingerprint = known[scan]
            same = old_stat == stat or contents.get((scan, old_fingerprint)) == _size_and_sha256(
                paths[scan], scan in moved
            )
            fingerprint = old_fingerprint if same else stat
        result[scan] = fingerprint
    frame = pd.DataFrame({"scan": list(stats), "stat": list(stats.values()), "fingerprint": list(result.values())})
    _write_if_changed(frame, cache)
    return list(result.values())


def _size_and_sha256(path: str, wanted: bool) -> tuple[int, str] | None:
    return (os.path.getsize(path), sha256_of(path)) if wanted else None


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
