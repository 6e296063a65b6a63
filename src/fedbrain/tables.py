"""The tables that pass between stages: TSV with a header, explicit column types, written atomically.

Missing values are written ``n/a``, as BIDS does. Identifiers stay strings (``007`` is not 7).
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from fedbrain.errors import StudyError

MISSING = "n/a"

TEXT, WHOLE, REAL = "string", "Int64", "Float64"  # nullable types, so that a missing age stays missing

SCANS = {  # results/cohorts/{cohort}/scans.tsv, one row per scan that takes part
    "scan": TEXT,  # sub-{subject}[_ses-{session}], unique within the cohort
    "subject": TEXT,
    "session": TEXT,
    "path": TEXT,
    "mask": TEXT,  # a brain mask that the user provides, or n/a
    "label": WHOLE,  # 0 or 1
    "diagnosis": TEXT,
    "age": REAL,  # years
    "sex": TEXT,
    "site": TEXT,
    "fingerprint": TEXT,
    "shard": WHOLE,
}
EXCLUDED = {"row": WHOLE, "subject": TEXT, "session": TEXT, "path": TEXT, "diagnosis": TEXT, "reason": TEXT}
MANIFEST = {"scan": TEXT, "subject": TEXT, "session": TEXT, "path": TEXT, "mask": TEXT, "fingerprint": TEXT}
SPLITS = {"cohort": TEXT, "subject": TEXT, "person": TEXT, "label": WHOLE, "split": TEXT}
VOLUMES = {  # results/volumes/{cohort}/{shard}.tsv, one row per scan of the shard; QC columns follow these
    "scan": TEXT,
    "subject": TEXT,
    "session": TEXT,
    "status": TEXT,  # ok or failed
    "reason": TEXT,
    "fingerprint": TEXT,
    "size": WHOLE,  # bytes of the source file
    "mtime_ns": WHOLE,
    "sha256": TEXT,  # of the source file
    "key": TEXT,  # digest of source, recipe and versions: what decides whether a volume is computed again
    "reused": WHOLE,  # 1 where the volume of an earlier run was kept
    "seconds": REAL,
}
HISTOGRAM = {"stage": TEXT, "start": REAL, "width": REAL, "count": WHOLE}  # stage before or after normalization
ROUNDS = {  # results/runs/{cell}/seed-{seed}/rounds.tsv
    "round": WHOLE,
    "client": TEXT,
    "status": TEXT,  # ok or failed
    "reason": TEXT,
    "scans": WHOLE,  # training scans of the client
    "loss": REAL,  # mean training loss of this round's local training
    "validation_loss": REAL,  # of the new global model on the client's validation scans
    "validation_score": REAL,  # balanced accuracy of the same
    "weight": REAL,  # contribution weight in the aggregation
    "bytes_down": WHOLE,
    "bytes_up": WHOLE,
    "seconds": REAL,
}
PREDICTIONS = {"cohort": TEXT, "subject": TEXT, "session": TEXT, "label": WHOLE, "score": REAL}
PERFORMANCE = {
    "head": TEXT,
    "tuning": TEXT,
    "aggregation": TEXT,
    "client": TEXT,  # a cohort, or "pooled"
    "metric": TEXT,
    "value": REAL,  # mean over seeds
    "low": REAL,
    "high": REAL,
    "seed_sd": REAL,
    "seeds": WHOLE,
    "subjects": WHOLE,
    "positives": WHOLE,
    "negatives": WHOLE,
    "note": TEXT,  # why a value is missing, in words
}
COMPARISONS = {  # results/evaluation/comparisons.tsv, one row per pair of cells and client
    "cell_a": TEXT,  # head/tuning/aggregation
    "cell_b": TEXT,
    "client": TEXT,  # a cohort, or "pooled"
    "metric": TEXT,
    "value_a": REAL,  # mean over seeds
    "value_b": REAL,
    "difference": REAL,  # a - b
    "low": REAL,  # interval over subjects, paired bootstrap
    "high": REAL,
    "seed_se": REAL,  # standard error of the difference that comes from training seeds; n/a with one seed
    "p_delong": REAL,  # AUC only
    "p_bootstrap": REAL,
    "p_holm": REAL,  # p_delong where there is one, else p_bootstrap, corrected over the family
    "seeds_a": WHOLE,
    "seeds_b": WHOLE,
    "subjects": WHOLE,
    "positives": WHOLE,
    "negatives": WHOLE,
    "note": TEXT,
}
CALIBRATION = {  # results/evaluation/calibration.tsv, one row per bin of a curve
    "head": TEXT,
    "tuning": TEXT,
    "aggregation": TEXT,
    "client": TEXT,  # a cohort, or "pooled"
    "seed": WHOLE,  # a curve is of one model: seeds are not mixed
    "bin": WHOLE,  # from 1, lowest scores first
    "score": REAL,  # mean of the bin
    "share": REAL,  # of cases in the bin
    "low": REAL,  # Wilson's interval of the share
    "high": REAL,
    "scans": WHOLE,
    "subjects": WHOLE,
    "cases": WHOLE,
    "ece": REAL,  # of the whole curve
    "ece_by_chance": REAL,  # mean error of a calibrated model with these scores
    "ece_by_chance_95": REAL,  # and its 95th percentile
    "note": TEXT,
}
SUBGROUPS = {  # results/evaluation/subgroups.tsv, one row per group and metric
    "head": TEXT,
    "tuning": TEXT,
    "aggregation": TEXT,
    "client": TEXT,  # a cohort, or "pooled"
    "attribute": TEXT,  # sex, age or site
    "group": TEXT,
    "reference": TEXT,  # of a difference: the group it is against; else n/a
    "metric": TEXT,
    "value": REAL,  # mean over seeds
    "low": REAL,
    "high": REAL,
    "seed_sd": REAL,
    "seeds": WHOLE,
    "scans": WHOLE,
    "subjects": WHOLE,
    "positives": WHOLE,
    "negatives": WHOLE,
    "note": TEXT,
}
THRESHOLDS = {  # results/evaluation/thresholds.tsv, one row per threshold and metric
    "head": TEXT,
    "tuning": TEXT,
    "aggregation": TEXT,
    "client": TEXT,  # a cohort, or "pooled"
    "rule": TEXT,  # fixed or youden
    "threshold": REAL,  # mean over seeds
    "threshold_sd": REAL,  # over seeds; n/a with one seed
    "metric": TEXT,
    "value": REAL,  # mean over seeds
    "low": REAL,
    "high": REAL,
    "seed_sd": REAL,
    "seeds": WHOLE,
    "subjects": WHOLE,
    "positives": WHOLE,
    "negatives": WHOLE,
    "note": TEXT,
}

EFFICIENCY = {  # results/evaluation/efficiency.tsv, one row per cell
    "head": TEXT,
    "tuning": TEXT,
    "aggregation": TEXT,
    "seeds": WHOLE,
    "trained": WHOLE,  # parameters
    "trained_share": REAL,  # of all parameters of encoder and head
    "bytes_down": REAL,  # per round and client, as sent
    "bytes_up": REAL,
    "bytes_run": REAL,  # per client over the whole run, both ways; mean over seeds
    "full_bytes": REAL,  # of all parameters of encoder and head as float32, what one direction of full tuning would send
    "gmacs": REAL,  # 1e9 multiply-accumulates of a forward pass of one scan, from the volume on
    "gmacs_step": REAL,  # the same from what is kept of the scan on: the forward part of a training step
    "gmacs_reference": REAL,  # from the volume on with the encoder's published implementation
    "peak_memory": WHOLE,  # bytes, of the job's process, or on the GPU
    "seconds_round": REAL,
    "seconds_scan": REAL,
    "seconds_run": REAL,
    "device": TEXT,
}


@contextmanager
def written_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it is renamed to ``path``, on failure it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, since writers (nibabel, matplotlib) choose the format by it.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_table(frame: pd.DataFrame, path: str | os.PathLike) -> None:
    """Writes ``frame`` as TSV, without its index."""
    with written_atomically(path) as temporary:
        frame.to_csv(temporary, sep="\t", index=False, na_rep=MISSING, lineterminator="\n")


def write_text(text: str, path: str | os.PathLike) -> None:
    """Writes ``text`` as UTF-8."""
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_table(path: str | os.PathLike, types: Mapping[str, str]) -> pd.DataFrame:
    """Reads a TSV; the columns in ``types`` must be there and get these types, further columns are read as they are.

    Raises StudyError where a column is missing or a value does not fit its type.
    """
    try:
        frame = pd.read_csv(path, sep="\t", dtype=dict(types), na_values=[MISSING], keep_default_na=False)
    except (ValueError, TypeError, pd.errors.ParserError) as error:
        raise StudyError(f"{path}: not a readable table: {error}") from error
    missing = [name for name in types if name not in frame.columns]
    if missing:
        raise StudyError(f"{path}: column {', '.join(missing)} is missing; delete the file and run again")
    return frame


def concatenate(paths, types: Mapping[str, str]) -> pd.DataFrame:
    """Reads several tables of one kind into one; no path gives an empty table with the right columns."""
    frames = [read_table(path, types) for path in paths]
    filled = [frame for frame in frames if len(frame)]
    if filled:
        return pd.concat(filled, ignore_index=True)
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()})
