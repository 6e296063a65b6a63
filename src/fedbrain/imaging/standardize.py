"""The stage of a fitted intensity normalization: a standard scale from training subjects, and the volumes of a shard on it.

A cohort's scale is the mean of its own training scans' landmarks, which the preprocessing has measured and put into their records;
records of validation and test subjects are not opened. Volumes are kept per scan, as in preprocessing; the scale belongs
to their key.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from fedbrain.errors import StudyError
from fedbrain.imaging import derivatives, histogram, intensity, layout, nyul
from fedbrain.imaging.reading import ScanFailure
from fedbrain.provenance import digest
from fedbrain.shard_folders import errors_name_only, held
from fedbrain.tables import VOLUMES

logger = logging.getLogger(__name__)


def fit_scale(
    shards: Iterable[tuple[pd.DataFrame, Path]], splits: pd.DataFrame, dropped: pd.DataFrame, *, cohort: str
) -> dict:
    """The standard scale of one cohort's training scans.

    Args:
        shards: of each shard the VOLUMES rows and the folder of its volumes and records.
        splits: SPLITS of the study.
        dropped: DROPPED rows, the scans that take no part.
        cohort: its name.

    Returns ``percentiles``, ``scale`` (11 numbers, or None where the cohort has no training scan), ``scans``, ``subjects``
    and ``cohorts``. Raises StudyError where a record is missing.
    """
    training = set(splits.loc[(splits["cohort"] == cohort) & (splits["split"] == "train"), "subject"])
    out = set(dropped.loc[dropped["cohort"] == cohort, "scan"])
    found, subjects = [], set()
    for table, folder in shards:
        used = (table["status"] == "ok") & table["subject"].isin(training) & ~table["scan"].isin(out)
        for row, scan in table[used].iterrows():
            found.append(_landmarks(_record(folder, scan["scan"], row), folder, row))
            subjects.add(scan["subject"])
    return {
        "percentiles": list(nyul.PERCENTILES),
        "scale": nyul.mean_landmarks(found) if found else None,
        "scans": len(found),
        "subjects": len(subjects),
        "cohorts": [cohort],
    }


def share_scale(scales: Iterable[Mapping]) -> dict:
    """One scale for all clients, from what ``fit_scale`` returned for each. Raises StudyError where none has training scans."""
    scales = [scale for scale in scales if scale["scans"]]
    if not scales:
        raise StudyError("no cohort has training scans to fit a standard scale to; see results/cohorts/splits.tsv")
    return {
        "percentiles": list(nyul.PERCENTILES),
        "scale": nyul.shared_scale([scale["scale"] for scale in scales], [scale["scans"] for scale in scales]),
        "scans": sum(scale["scans"] for scale in scales),
        "subjects": sum(scale["subjects"] for scale in scales),
        "cohorts": [cohort for scale in scales for cohort in scale["cohorts"]],
    }


def standardize_shard(
    table: pd.DataFrame, source: str | Path, folder: str | Path, scale: Mapping, *, cohort: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Brings the volumes of a shard onto a standard scale; keeps what an earlier run has made the same way.

    Args:
        table: VOLUMES rows with the QC columns, as preprocessing wrote them.
        source: the folder of the volumes, masks and records in the scanner's units.
        folder: where the standardized ones go, laid out the same way; those of scans that are no longer listed, or that failed,
            are removed.
        scale: what ``fit_scale`` or ``share_scale`` returned.
        cohort: its name, for messages.
    Returns:
        ``table`` with the keys, seconds and reuse of the standardized volumes, failed rows as they were; and the HISTOGRAM of
        the scans that are ok, stages ``before`` (bias-corrected) and ``after`` normalization.
    Raises:
        StudyError: where the scale was fitted to no scan, a volume or record is missing or damaged, or another process
            works on the folder.
    """
    if scale["scale"] is None:
        raise StudyError(
            f"cohort {cohort}: no training scan to fit a standard scale to; write preprocessing.nyul.scale: shared, or give "
            "the cohort more subjects"
        )
    source, folder = Path(source), Path(folder)
    with errors_name_only(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        return _standardize_all(table.copy(), source, folder, _method(scale), cohort)


def _standardize_all(
    table: pd.DataFrame, source: Path, folder: Path, method: Mapping, cohort: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    usable, histograms = table[table["status"] == "ok"], {"before": [], "after": []}
    with errors_name_only(folder):
        derivatives.remove_stale(folder, usable["scan"])
    listed = tqdm(usable.iterrows(), total=len(usable), desc=f"{cohort}: scans", unit="scan", mininterval=5)
    for row, scan in listed:
        key = digest(method | {"volume": scan["key"]})
        record = derivatives.kept_record(folder, scan["scan"], key)
        reused = record is not None
        try:
            if record is None:
                record = _standardize(source, folder, scan["scan"], row, key, method)
        except ScanFailure as failure:
            derivatives.remove(folder, scan["scan"])
            table.loc[row, ["status", "reason", "reused"]] = ["failed", str(failure), 0]
            continue
        table.loc[row, ["key", "reused", "seconds"]] = [key, int(reused), record["seconds"]]
        for stage, counts in record["histograms"].items():
            histograms[stage].append(histogram.unpacked(counts))
    kept = int(table.loc[table["status"] == "ok", "reused"].sum())
    logger.info("cohort %s: %d scans, %d kept from an earlier run", cohort, len(table), kept)
    return table.astype(VOLUMES), histogram.merge_stages(histograms)


def _standardize(source: Path, folder: Path, scan: str, row: int, key: str, method: Mapping) -> dict:
    start = time.perf_counter()
    record = _record(source, scan, row)
    values, mask = derivatives.read(source, scan, _place(source, row))
    volume = nyul.normalized(values, mask, _landmarks(record, source, row), method["scale"])
    seconds = round(time.perf_counter() - start, 3)
    said = {"percentiles": list(nyul.PERCENTILES), "scale": method["scale"], "then": "encoder"}
    record |= {
        "steps": [*record["steps"], {"name": "standardization", "parameters": said, "seconds": seconds}],
        "seconds": round(record["seconds"] + seconds, 3),
        "key": key,
        "method": {"volume": record["method"], "standardization": dict(method)},
    }
    after = histogram.scan_histogram(volume[mask], intensity.BIN_WIDTHS["encoder"])
    record["histograms"] = record["histograms"] | {"after": histogram.packed(after)}
    derivatives.write(folder, scan, volume, mask, record)
    return record


def _method(scale: Mapping) -> dict:
    """All that a standardized volume depends on beside its volume. How many scans the scale is from does not change it."""
    modules = [Path(__file__)] + [Path(module.__file__) for module in (derivatives, histogram, intensity, nyul)]
    return {"scale": scale["scale"]} | derivatives.tools(modules, ("nibabel", "numpy"))


def _record(folder: Path, scan: str, row: int) -> dict:
    try:
        with errors_name_only(folder):
            return json.loads(layout.sidecar_path(folder, scan).read_text())
    except (FileNotFoundError, ValueError):
        raise StudyError(f"{_place(folder, row)}: its record is missing or damaged; {derivatives.MEND}") from None


def _landmarks(record: Mapping, folder: Path, row: int) -> list[float]:
    for step in record["steps"]:
        if step["name"] == "intensity" and "landmarks" in step["parameters"]:
            return step["parameters"]["landmarks"]
    raise StudyError(f"{_place(folder, row)}: its record holds no landmarks; {derivatives.MEND}")


def _place(folder: Path, row: int) -> str:
    return f"{folder}: the volume of row {row + 1} of the shard's table"
