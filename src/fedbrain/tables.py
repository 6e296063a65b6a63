"""The tables that pass between stages: TSV with a header, explicit column types, written atomically.

Missing values are written ``n/a``, as BIDS does. Identifiers stay strings (``007`` is not 7).
"""

import os
from collections.abc import Iterable, Iterator, Mapping
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
PASSED_OVER = {  # results/cohorts/{cohort}/passed_over.tsv, one row per T1w image of a BIDS folder that was not taken
    "subject": TEXT,
    "session": TEXT,
    "path": TEXT,
    "reason": TEXT,
    "chosen": TEXT,  # the image that stands for the session, or n/a where none does
}
SCANNERS = {
    "scan": TEXT,
    "field_strength": REAL,
    "scanner": TEXT,
}  # results/cohorts/{cohort}/scanners.tsv; T, maker and model
MANIFEST = {"scan": TEXT, "subject": TEXT, "session": TEXT, "path": TEXT, "mask": TEXT, "fingerprint": TEXT}
DICOM = {
    "scan": TEXT,
    "dicom": TEXT,
    "fingerprint": TEXT,
}  # results/cohorts/{cohort}/dicom/{shard}.tsv; dicom: a folder
CONVERSIONS = {  # results/nifti/{cohort}/{shard}.tsv, one row per DICOM folder of the shard
    "scan": TEXT,
    "status": TEXT,  # ok or failed
    "reason": TEXT,
    "fingerprint": TEXT,
    "size": WHOLE,  # bytes of all files in the folder
    "sha256": TEXT,  # digest of their contents
    "series": TEXT,  # number and description of the series that was taken
    "passed_over": TEXT,  # of the other 3D series in the folder
    "field_strength": REAL,  # T
    "scanner": TEXT,  # maker and model
    "reused": WHOLE,  # 1 where the image of an earlier run was kept
    "seconds": REAL,
}
SPLITS = {"cohort": TEXT, "subject": TEXT, "person": TEXT, "label": WHOLE, "split": TEXT}
DUPLICATES = {  # results/cohorts/duplicates.tsv, one row per scan whose image occurs more than once
    "image": WHOLE,  # number of the image, from 1
    "cohort": TEXT,
    "scan": TEXT,
    "subject": TEXT,
    "label": WHOLE,
    "same": TEXT,  # file, or voxels where the files differ
}
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
    "voxels_sha256": TEXT,  # of its decoded voxels, where the scan is ok: one image is known in any file
    "key": TEXT,  # digest of source, recipe and versions: what decides whether a volume is computed again
    "reused": WHOLE,  # 1 where the volume of an earlier run was kept
    "seconds": REAL,
}
QUALITY = {  # results/quality/{cohort}.tsv, one row per scan of the cohort, failed ones too; the metrics follow these
    "scan": TEXT,
    "subject": TEXT,
    "session": TEXT,
    "shard": WHOLE,
    "status": TEXT,  # ok or failed
    "flagged": WHOLE,  # 1: beyond a limit or an outlier
    "kept": WHOLE,  # 0: failed, or dropped by a threshold
    "reason": TEXT,  # why it failed, or what it is flagged for
    "worst_metric": TEXT,
    "worst_z": REAL,  # robust z of that metric within the cohort
}
DROPPED = {"cohort": TEXT, "scan": TEXT, "reason": TEXT}  # results/cohorts/dropped.tsv, what a threshold leaves out
HISTOGRAM = {"stage": TEXT, "start": REAL, "width": REAL, "count": WHOLE}  # stage before or after normalization
RUN_RESULTS = (  # the files in results/runs/{cell}/seed-{seed}/, as they are written
    "rounds.tsv",
    "predictions_validation.tsv",
    "predictions.tsv",
    "predictions_global_validation.tsv",
    "predictions_global.tsv",
    "model.safetensors",
    "summary.json",
)
ROUNDS = {  # results/runs/{cell}/seed-{seed}/rounds.tsv
    "round": WHOLE,
    "client": TEXT,
    "status": TEXT,  # ok, failed, or rested (not drawn for this round)
    "reason": TEXT,
    "scans": WHOLE,  # training scans of the client; 0 where it rested
    "loss": REAL,  # mean training loss of this round's local training
    "validation_loss": REAL,  # of the new global model on the client's validation scans
    "validation_score": REAL,  # balanced accuracy of the same
    "weight": REAL,  # contribution weight in the aggregation
    "bytes_down": WHOLE,
    "bytes_up": WHOLE,
    "seconds": REAL,  # of the client's parts of the round, from the message to the reply
    "peak_memory": WHOLE,  # bytes, of the client's process in those seconds, or on the GPU
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
PERSONALISATION = {  # results/evaluation/personalisation.tsv, a client's own model (a) minus another (b)
    "against": TEXT,  # what b is: global, local or centralized
    **COMPARISONS,
    "training": WHOLE,  # the client's training subjects
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
    "attribute": TEXT,  # sex, age, site, field_strength or scanner
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
MEMBERS = {  # results/privacy/{cell}/seed-{seed}/{model}.tsv, one row per scan of the training and test subjects
    "cohort": TEXT,
    "subject": TEXT,
    "session": TEXT,
    "member": WHOLE,  # 1 where the model was trained on it
    "logit": REAL,  # log(p / (1 - p)), p the model's probability of the scan's own label
}
PRIVACY = {  # results/evaluation/privacy.tsv, one row per cell, client, attack and metric
    "head": TEXT,
    "tuning": TEXT,
    "aggregation": TEXT,
    "seed": WHOLE,
    "client": TEXT,  # a cohort, or "pooled"
    "attack": TEXT,  # loss or lira
    "metric": TEXT,
    "fpr": REAL,  # the false-positive rate at which a true-positive rate is taken; n/a for an AUC
    "value": REAL,
    "low": REAL,
    "high": REAL,
    "members": WHOLE,  # subjects, a person once
    "nonmembers": WHOLE,
    "shadows": WHOLE,  # models that the attack trained
    "note": TEXT,
}
MEMBERSHIP_CURVES = {  # results/evaluation/membership_curves.tsv, one row per threshold of an attack
    "head": TEXT,
    "tuning": TEXT,
    "aggregation": TEXT,
    "seed": WHOLE,
    "client": TEXT,
    "attack": TEXT,
    "fpr": REAL,
    "tpr": REAL,
}
TRANSFER = {  # results/evaluation/transfer.tsv, one row per cell, cohort, subjects, model and metric
    "head": TEXT,
    "tuning": TEXT,
    "aggregation": TEXT,
    "cohort": TEXT,  # that was left out or is external, or "mean": of those that were left out
    "kind": TEXT,  # left out or external
    "tested": TEXT,  # on its test subjects, or on all its subjects
    "model": TEXT,  # unseen (trained without the cohort), seen, or the difference unseen - seen
    "metric": TEXT,
    "value": REAL,  # mean over seeds
    "low": REAL,  # interval over subjects; of a mean over cohorts, that of Hartung and Knapp
    "high": REAL,
    "p": REAL,  # of a difference: DeLong's for the AUC, else the bootstrap's
    "p_holm": REAL,  # over all differences of the metric
    "prediction_low": REAL,  # of a mean: where a further cohort may lie
    "prediction_high": REAL,
    "tau": REAL,  # of a mean: standard deviation between cohorts; of AUCs in logits
    "cohorts": WHOLE,  # of a mean
    "seed_sd": REAL,
    "seeds": WHOLE,
    "subjects": WHOLE,
    "positives": WHOLE,
    "negatives": WHOLE,
    "note": TEXT,
}

SITE_EFFECTS = {  # results/site_effects/{encoder}/cohort_told.tsv, one row per set of features, scans and metric
    "features": TEXT,  # mean or spread (of each channel over the positions), quality (metrics of the scan), age and sex
    "harmonization": TEXT,  # the tuning that asks for it, or none
    "side": TEXT,  # of the split: all, or held out (validation and test)
    "label": TEXT,  # all, or controls
    "cohort": TEXT,  # that is told from the rest, or all
    "metric": TEXT,  # accuracy and balanced_accuracy of all cohorts, auc of one
    "value": REAL,
    "low": REAL,  # interval over persons
    "high": REAL,
    "chance": REAL,
    "scans": WHOLE,
    "subjects": WHOLE,  # a person once
    "folds": WHOLE,
    "note": TEXT,
}
SITE_VARIANCE = {  # results/site_effects/{encoder}/variance.tsv, one row per feature; the first columns as above
    "features": TEXT,
    "harmonization": TEXT,
    "side": TEXT,
    "label": TEXT,
    "feature": WHOLE,  # of a channel its number
    "eta_squared": REAL,  # share of the variance that lies between cohorts
    "omega_squared": REAL,  # the same, 0 by chance
}
SITE_PROJECTION = {  # results/site_effects/{encoder}/projection.tsv, one row per person and harmonization
    "harmonization": TEXT,
    "cohort": TEXT,
    "label": WHOLE,
    "split": TEXT,
    "first": REAL,  # standard units along the direction of largest variance of the channel means
    "second": REAL,
    "first_share": REAL,  # of the variance
    "second_share": REAL,
}
HARMONIZATION = {  # results/harmonization/{tuning}.tsv, one row per client
    "client": TEXT,
    "subjects": WHOLE,  # that it was fitted on
    "numbers_up": WHOLE,  # that the client sent, once
    "numbers_down": WHOLE,
    "bytes_up": WHOLE,
    "bytes_down": WHOLE,
    "location": REAL,  # median over channels of its absolute value, in pooled standard deviations
    "scale": REAL,  # median over channels
    "iterations": WHOLE,
    "constant_channels": WHOLE,  # left as they are
}

EXPLANATION = {  # results/explanation/{head}/{tuning}/{aggregation}/explanation.tsv, one row per scan and method
    "cohort": TEXT,
    "scan": TEXT,
    "subject": TEXT,
    "session": TEXT,
    "label": WHOLE,
    "score": REAL,  # as in predictions.tsv
    "method": TEXT,  # integrated_gradients, occlusion or rollout
    "evidence": REAL,  # logit of a case minus that of a control
    "reference_evidence": REAL,  # of the reference; this column and the next two of integrated gradients only
    "total": REAL,  # sum of the map
    "completeness_error": REAL,  # |total - (evidence - reference_evidence)|
    "pads": REAL,  # of a roll-out: the share that flows from pads
    "seconds": REAL,
}
RANDOMISATION = {  # .../randomisation.tsv, one row per scan, method and stage: the map against that of scrambled weights
    "cohort": TEXT,
    "scan": TEXT,
    "label": WHOLE,
    "method": TEXT,
    "number": WHOLE,  # of the stage, from 1
    "stage": TEXT,  # what is scrambled, beside that of all stages before
    "spearman": REAL,  # within the brain
    "spearman_absolute": REAL,  # of the maps without their signs
    "ssim": REAL,  # of the same
}

EFFICIENCY = {  # results/evaluation/efficiency.tsv, one row per cell
    "head": TEXT,
    "tuning": TEXT,
    "aggregation": TEXT,
    "seeds": WHOLE,
    "trained": WHOLE,  # parameters
    "trained_share": REAL,  # of all parameters of encoder and head
    "sent": WHOLE,  # trained parameters that the method has travel each way
    "sent_share": REAL,  # of all parameters: the ratio of parameters by which methods are often compared
    "bytes_down": REAL,  # per round and client, as sent
    "bytes_up": REAL,
    "bytes_run": REAL,  # per client over the whole run, both ways; mean over seeds
    "bytes_share": REAL,  # of bytes_run in what full tuning would send in as many rounds
    "rounds": REAL,  # that were trained; mean over seeds
    "full_bytes": REAL,  # of all parameters of encoder and head as float32, what one direction of full tuning would send
    "gmacs": REAL,  # 1e9 multiply-accumulates of a forward pass of one scan, from the volume on
    "gmacs_step": REAL,  # the same from what is kept of the scan on: the forward part of a training step
    "gmacs_reference": REAL,  # from the volume on with the encoder's published implementation
    "peak_memory": WHOLE,  # bytes, of the job's process, or on the GPU
    "peak_memory_client": WHOLE,  # the same in the turn of the client that took most
    "seconds_client": REAL,  # of computing, per client and round
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


def by_cohort(paths: Iterable[str], cohorts: Iterable[str]) -> dict[str, list[str]]:
    """The files of each cohort's shards; a shard's file lies in a folder named like its cohort."""
    paths = list(paths)
    return {cohort: [path for path in paths if Path(path).parent.name == cohort] for cohort in cohorts}


def concatenate(paths, types: Mapping[str, str]) -> pd.DataFrame:
    """Reads several tables of one kind into one; no path gives an empty table with the right columns."""
    frames = [read_table(path, types) for path in paths]
    filled = [frame for frame in frames if len(frame)]
    if filled:
        return pd.concat(filled, ignore_index=True)
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()})
