"""Which scans of a cohort stand out by their quality metrics, and which of them are dropped; tables only, no image.

A metric is compared within its cohort by a robust z, and with the limits of the config. What is found is flagged; it is
dropped where the config says so. The formulas of the metrics are in ``quality``; here is which direction of each is bad.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from fedbrain.tables import DROPPED, QUALITY, VOLUMES, read_table

FEWEST = 5  # scans of a cohort with a value; with fewer nothing can be said of outliers (ours)


@dataclass(frozen=True)
class Metric:
    """What a reader must know of a metric: its bad direction, and what it says.

    ``bad`` is "low", "high" or "both". A scan that differs from the cohort's median by less than ``least`` is no outlier in
    this metric, whatever its z: fractions that are 0 in nearly all scans would flag a handful of voxels (ours).
    """

    bad: str
    least: float
    title: str
    formula: str
    source: str


METRICS = {
    "brain_volume_ml": Metric("both", 0, "brain volume, ml", "voxels of the brain mask × voxel volume", ""),
    "template_correlation": Metric(
        "low", 0, "correlation with the template", "Pearson's r over the union of both brains", "ours"
    ),
    "registration_similarity": Metric(
        "low", 0, "similarity after registration", "(H(a) + H(b)) / H(a, b) − 1 of brain and template", "Studholme 1999"
    ),
    "head_rotation_degrees": Metric("high", 5, "rotation to the template, degrees", "angle of the affine", "ours"),
    "header_conflict": Metric("high", 1, "header conflict, mm", "where sform and qform put a corner", "ours"),
    "mask_dice": Metric("low", 0, "mask overlap with the template", "2 |A ∩ B| / (|A| + |B|)", "Dice 1945"),
    "affine_determinant": Metric(
        "both", 0, "enlargement to the template", "determinant of the affine from scanner to MNI", "ours"
    ),
    "cjv": Metric(
        "high",
        0,
        "coefficient of joint variation",
        "(s_w + s_g) / |m_w − m_g|, medians and scaled MADs",
        "Ganzetti 2016",
    ),
    "snr_white_matter": Metric("low", 0, "SNR, white matter", "m / (s √(n / (n − 1)))", "MRIQC"),
    "snr_grey_matter": Metric("low", 0, "SNR, grey matter", "m / (s √(n / (n − 1)))", "MRIQC"),
    "smoothness_mm": Metric(
        "both", 0, "smoothness, mm", "FWHM from the variance of neighbours' differences in the brain", "Forman 1995"
    ),
    "efc": Metric("high", 0, "entropy focus criterion", "entropy of the whole scan / its maximum", "Atkinson 1997"),
    "rim_intensity": Metric(
        "high",
        0,
        "intensity around the mask",
        "median of the 2nd and 3rd layer of voxels around it / median within",
        "ours",
    ),
    "left_right_correlation": Metric(
        "both", 0, "left-right correlation", "Pearson's r of the volume and its mirror image in the brain", "ours"
    ),
    "left_right_dice": Metric("low", 0, "left-right mask overlap", "Dice of the mask and its mirror image", "ours"),
    "bias_log_sd": Metric("high", 0, "bias field", "standard deviation of its logarithm in the brain", "ours"),
    "edge_fraction": Metric(
        "high", 0.001, "brain at the scan's edge", "share of brain voxels in the scan's outermost layer", "ours"
    ),
    "fov_coverage": Metric(
        "low", 0.002, "field of view", "share of the template's brain inside the scan's field of view", "ours"
    ),
    "outside_grid_fraction": Metric(
        "high", 0.002, "brain outside the grid", "1 − brain on the MNI grid / brain that the affine sends there", "ours"
    ),
}


def problems(settings: Mapping) -> Iterator[str]:
    """What is wrong with the config's section ``quality``, in words; nothing if it can be meant."""
    for name, limit in settings["limits"].items():
        if name not in METRICS:
            near = get_close_matches(str(name), METRICS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(METRICS)}"
            yield f"quality.limits: unknown metric {name!r}; {hint}"
        elif {"min", "max"} <= set(limit) and limit["min"] > limit["max"]:
            yield f"quality.limits.{name}: min {limit['min']:g} is over max {limit['max']:g}; nothing could pass"


def drop_words(drop: str) -> str:
    """What the config's ``quality.drop`` means."""
    return {
        "none": "No scan is dropped for its quality: the flags are for the eye.",
        "limits": "Scans beyond a limit are dropped: they take no part in training, validation or test.",
        "flagged": "Flagged scans are dropped: they take no part in training, validation or test.",
    }[drop]


def robust_z(values: np.ndarray) -> np.ndarray:
    """(x - median) / (1.4826 MAD); where more than half of the values are equal, (x - median) / (1.2533 mean |x - median|).

    Both denominators estimate a Gaussian's standard deviation (Iglewicz and Hoaglin 1993, "How to detect and handle
    outliers"; the second as in IBM SPSS's modified z). All values equal give 0; NaN stays NaN; with fewer than FEWEST
    values all are NaN.

    Args:
        values: (N,) float.
    """
    known = np.isfinite(values)
    if known.sum() < FEWEST:
        return np.full(len(values), np.nan)
    away = values - np.median(values[known])
    scale = 1.482602 * np.median(np.abs(away[known])) or 1.253314 * np.mean(np.abs(away[known]))
    return away / scale if scale > 0 else np.where(known, 0.0, np.nan)


def badness(z: np.ndarray, metric: str) -> np.ndarray:
    """How far in the bad direction: z itself, -z or \\|z\\|."""
    return {"high": z, "low": -z, "both": np.abs(z)}[METRICS[metric].bad]


def read_shards(paths: Iterable[str | Path]) -> pd.DataFrame:
    """The VOLUMES tables of one cohort's shards with their metrics, and the column ``shard`` from the file's name."""
    tables = [read_table(path, VOLUMES).assign(shard=int(Path(path).stem)) for path in paths]
    if not tables:
        return pd.DataFrame(columns=[*VOLUMES, "shard"])
    metrics = [name for name in METRICS if any(name in table for table in tables)]
    scans = pd.concat([table.reindex(columns=[*VOLUMES, "shard", *metrics]) for table in tables], ignore_index=True)
    return scans.astype(VOLUMES | dict.fromkeys(metrics, "Float64"))


def zscores(scans: pd.DataFrame) -> pd.DataFrame:
    """The robust z of every known metric among the columns, over the scans that are ok; a column per metric, same index.

    A difference from the median of less than the metric's ``least`` counts as none.
    """
    columns = {}
    for name in (name for name in METRICS if name in scans.columns):
        values = scans[name].where(scans["status"] == "ok").to_numpy(dtype=np.float64, na_value=np.nan)
        away = values - np.median(values[np.isfinite(values)]) if np.isfinite(values).any() else values
        columns[name] = np.where(np.abs(away) < METRICS[name].least, 0.0, robust_z(values))
        columns[name][np.isnan(robust_z(values))] = np.nan
    return pd.DataFrame(columns, scans.index)


def assess(scans: pd.DataFrame, settings: Mapping) -> pd.DataFrame:
    """What stands out among the scans of one cohort, in words, and what is dropped for it.

    Args:
        scans: VOLUMES rows with the columns of the metrics and ``shard``, all shards of a cohort.
        settings: ``outlier_z``, ``limits`` (metric to ``min``, ``max`` or both) and ``drop`` of the config.

    Returns QUALITY rows followed by the metrics, in the order of ``scans``. A scan is ``flagged`` where it lies beyond a limit,
    further than ``outlier_z`` in a metric's bad direction, or where it has no value of a metric with a limit or that most sound
    scans have: what could not be measured is no good sign. ``kept`` is 0 where it failed or is dropped.
    """
    z = zscores(scans)
    bad = pd.DataFrame({name: badness(z[name].to_numpy(), name) for name in z}, scans.index)
    ok = scans["status"] == "ok"
    beyond = pd.Series(False, scans.index)
    for name, limit in settings["limits"].items():
        if name in scans:
            beyond |= (scans[name] < limit.get("min", -np.inf)).fillna(False).astype(bool)
            beyond |= (scans[name] > limit.get("max", np.inf)).fillna(False).astype(bool)
    beyond &= ok
    usual = [name for name in z if name in settings["limits"] or scans.loc[ok, name].notna().mean() > 0.5]
    missing = scans[usual].isna().mul(ok, axis=0)
    flagged = beyond | (bad > settings["outlier_z"]).any(axis=1) | missing.any(axis=1)
    dropped = {"none": ~ok, "limits": ~ok | beyond, "flagged": ~ok | flagged}[settings["drop"]]
    table = scans.reindex(columns=list(QUALITY)).astype(QUALITY)
    table = table.assign(flagged=flagged.astype(int), kept=(~dropped).astype(int))
    medians = {name: scans.loc[ok, name].dropna().median() for name in z if scans.loc[ok, name].notna().any()}
    for place in scans.index[flagged]:
        scan = scans.loc[place]
        limits = dict(_beyond_limits(scan, settings["limits"]))
        far = [name for name in bad.loc[place].sort_values(ascending=False).index if name not in limits]
        found = [
            f"{name} {scan[name]:.5g} (z {z.loc[place, name]:+.1f}, median {medians[name]:.5g})"
            for name in far
            if bad.loc[place, name] > settings["outlier_z"]
        ]
        absent = [
            f"{name} has no value, "
            + ("so its limit says nothing" if name in settings["limits"] else "though most scans have one")
            for name in usual
            if missing.loc[place, name]
        ]
        table.loc[place, "reason"] = "; ".join([*limits.values(), *absent, *found])
    judged = bad.notna().any(axis=1)
    worst = bad[judged].idxmax(axis=1)
    numbers = z.to_numpy()[np.flatnonzero(judged), z.columns.get_indexer(worst)]
    table["worst_metric"] = worst
    table["worst_z"] = pd.Series(numbers, worst.index).round(3)
    return pd.concat([table.astype(QUALITY), scans[list(z)].astype("Float64")], axis=1)


def dropped_scans(assessed: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The scans that are sound and that a threshold leaves out all the same (DROPPED), from QUALITY tables by cohort."""
    rows = [
        (cohort, scan["scan"], scan["reason"])
        for cohort, table in assessed.items()
        for scan in table[(table["status"] == "ok") & (table["kept"] == 0)].to_dict("records")
    ]
    return pd.DataFrame(rows, columns=list(DROPPED)).astype(DROPPED)


def _beyond_limits(scan: Mapping, limits: Mapping) -> Iterator[tuple[str, str]]:
    """Metric and words."""
    for name, limit in limits.items():
        value = scan.get(name)
        if pd.isna(value):
            continue
        if "min" in limit and value < limit["min"]:
            yield name, f"{name} {value:.5g} is under the limit {limit['min']:g}"
        if "max" in limit and value > limit["max"]:
            yield name, f"{name} {value:.5g} is over the limit {limit['max']:g}"
