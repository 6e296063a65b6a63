"""Performance by sex, age band, site and scanner, and the differences between groups.

Groups are read from the scan table, for each scan: a subject that has a birthday between two sessions may be in two age
bands. What is missing is a group of its own, "unknown", and is never dropped. Sites belong to a cohort; scanners and field
strengths are compared across cohorts.

Within a client the subjects are drawn within strata of label and group (a subject of several groups in the first of
them), so that every resample has as many cases and controls of each group as the test set, and all groups and all cells
meet the same resamples.

Differences are of true positive rate (sensitivity) and false positive rate (1 - specificity) against the group with the
most subjects: both are 0 for a classifier with equalised odds (Hardt, Price and Srebro, NeurIPS 2016). A rate is at a
score of 0.5. No largest gap over all groups is given: it grows with the number of groups by chance alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fedbrain.errors import StudyError
from fedbrain.evaluation.bootstrap import Interval, intervals
from fedbrain.evaluation.calibration import CALIBRATION_METRICS
from fedbrain.evaluation.metrics import METRICS, Metric, counted, reason_undefined, sensitivity, specificity
from fedbrain.evaluation.predictions import (
    POOLED,
    Cell,
    aligned,
    of_client,
    refuse_pooled_cohort,
    with_persons,
    without_model,
)
from fedbrain.tables import SUBGROUPS

ATTRIBUTES = ("sex", "age", "site", "field_strength", "scanner")
AGE_EDGES = (65, 75)  # years, the lower ends of all bands but the first (ours)
SHOWN = ("auc", "sensitivity", "specificity", "brier")
DIFFERENCES = {"tpr_difference": "case", "fpr_difference": "control"}  # and the class that each is a rate of
FEW = 10  # cases or controls below which a group's numbers are marked (ours)
UNKNOWN = "unknown"


def age_band(ages, edges: Sequence[float] = AGE_EDGES) -> np.ndarray:
    """Names of the age bands, (N,) of str: for edges 65, 75 ``under 65``, ``65 to 74``, ``75 and over``, ``unknown``.

    ages (N,) in years, NaN where missing; an age on an edge is in the band above it. Raises ValueError where edges do
    not rise.
    """
    ages = np.asarray(ages, dtype=float)
    edges = list(edges)
    if not edges or sorted(set(edges)) != edges:
        raise ValueError(f"age edges {edges} must be one or more rising ages in years")
    last = [f"{edge - 1:g}" if float(edge).is_integer() else f"under {edge:g}" for edge in edges[1:]]
    names = [
        f"under {edges[0]:g}",
        *(f"{low:g} to {high}" for low, high in zip(edges, last)),
        f"{edges[-1]:g} and over",
    ]
    bands = np.array(names, dtype=object)[np.searchsorted(edges, ages, side="right")]
    bands[~np.isfinite(ages)] = UNKNOWN
    return bands.astype(str)


def field_band(strengths) -> np.ndarray:
    """Names of nominal field strengths, (N,) of str: 2.89 T of a scanner's header is ``3 T``; ``unknown`` where NaN.

    Half teslas from 1 T on, as they are built; below, two digits.
    """
    strengths = np.asarray(strengths, dtype=float)
    rounded = [round(2 * value) / 2 if value >= 0.9 else float(f"{value:.2g}") for value in np.nan_to_num(strengths)]
    return np.array([f"{r:g} T" if np.isfinite(s) else UNKNOWN for r, s in zip(rounded, strengths)], dtype=str)


def subgroups(
    predictions: Mapping[Cell, Mapping[int, pd.DataFrame]],
    scan_tables: Mapping[str, pd.DataFrame],
    *,
    clients: Sequence[str],
    attributes: Sequence[str] = ("sex", "age", "site"),
    age_edges: Sequence[float] = AGE_EDGES,
    metrics: Sequence[str] = SHOWN,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    method: str = "percentile",
    splits: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Metrics of every group with intervals over subjects, and differences between groups: a table :data:`SUBGROUPS`.

    predictions, clients, splits, resamples, level, seed, method: as
    :func:`fedbrain.evaluation.performance.performance` takes them. scan_tables: for each cohort its table SCANS (columns
    subject, session, age, sex, site) and, where asked for, the columns field_strength (T) and scanner. metrics: names in METRICS or CALIBRATION_METRICS. Sites are named
    ``cohort/site``: the same word in two cohorts is two sites.

    Rows with a reference are differences, group minus reference, the reference being the group with the most subjects
    (of equally large ones the first by name; "unknown" is never one). A note marks a group with fewer than ten cases or
    ten controls, and says why a value is missing.
    Raises StudyError where predictions do not fit, a cohort has no scan table or a predicted scan is not in it, and
    ValueError for an unknown attribute or metric.
    """
    known = METRICS | CALIBRATION_METRICS
    for name, allowed in [(name, ATTRIBUTES) for name in attributes] + [(name, tuple(known)) for name in metrics]:
        if name not in allowed:
            raise ValueError(f"{name!r} is not known; known: {', '.join(allowed)}")
    refuse_pooled_cohort(clients)
    options = {"resamples": resamples, "level": level, "seed": seed, "method": method}
    absent, rows = without_model(predictions, splits), []
    for cell, by_seed in predictions.items():
        scans, scores = aligned(cell, by_seed, clients)
        scans = with_persons(_with_attributes(scans, scan_tables, age_edges), splits)
        for client in (*clients, POOLED):
            mask = of_client(scans, client)
            for attribute in attributes:
                labelled = {"head": cell[0], "tuning": cell[1], "aggregation": cell[2], "client": client}
                labelled |= {"attribute": attribute, "seeds": len(scores)}
                chosen = {name: known[name] for name in metrics}
                said = absent.get((cell, client), "")
                for row in _group_rows(scans[mask], scores[:, mask], attribute, chosen, options):
                    if said:  # without a scan, it is the reason
                        row["note"] = "; ".join(filter(None, (said, row["note"] if mask.any() else None)))
                    rows.append(labelled | row)
    return pd.DataFrame(rows, columns=list(SUBGROUPS)).astype(SUBGROUPS)


def within(metric: Metric, inside: np.ndarray) -> Metric:
    """A metric of the scans in a group alone, with the signature of a metric of all; inside (N,) of bool."""

    def of_group(labels, scores, weights=None):
        weights = None if weights is None else np.asarray(weights)[inside]
        return metric(np.asarray(labels)[inside], np.asarray(scores)[inside], weights)

    return of_group


def rate_difference(name: str, inside: np.ndarray, reference: np.ndarray) -> Metric:
    """``tpr_difference`` or ``fpr_difference`` of two groups of scans, group minus reference, as a metric of all scans.

    inside, reference: (N,) of bool. NaN where a group lacks the class of the rate.
    """
    rate, sign = {"tpr_difference": (sensitivity, 1), "fpr_difference": (specificity, -1)}[name]
    of_group, of_reference = within(rate, inside), within(rate, reference)

    def difference(labels, scores, weights=None):
        return sign * (of_group(labels, scores, weights) - of_reference(labels, scores, weights))

    return difference


def _with_attributes(scans, scan_tables, age_edges):
    missing = sorted(set(scans["cohort"]) - set(scan_tables))
    if missing:
        raise StudyError(f"no scan table of cohort {', '.join(missing)}: subgroups need age, sex and site of its scans")
    tables = [
        table.reindex(columns=["subject", "session", *ATTRIBUTES]).assign(cohort=cohort)
        for cohort, table in scan_tables.items()
        if cohort in set(scans["cohort"])
    ]
    if not tables:
        return scans.assign(**dict.fromkeys(ATTRIBUTES, ""))
    table = pd.concat(tables).assign(session=lambda t: t["session"].astype("string").fillna(""))
    table = table.astype({"subject": "string", "cohort": "string"})
    keys = ["cohort", "subject", "session"]
    joined = scans.astype({key: "string" for key in keys}).merge(
        table.drop_duplicates(keys), on=keys, how="left", indicator=True
    )
    lost = joined["_merge"] != "both"
    if lost.any():
        cohorts = ", ".join(sorted(set(joined.loc[lost, "cohort"])))
        raise StudyError(
            f"{counted(int(lost.sum()), 'predicted scan')} of {cohorts} not in the scan table: it was changed since the "
            "training; run the study again"
        )
    sex, site, scanner = (
        joined[name].astype("string").str.strip().replace("", pd.NA) for name in ("sex", "site", "scanner")
    )
    return scans.assign(
        sex=sex.fillna(UNKNOWN).to_numpy(str),
        age=age_band(joined["age"].astype("Float64").to_numpy(float, na_value=np.nan), age_edges),
        site=(joined["cohort"] + "/" + site.fillna(UNKNOWN)).to_numpy(str),
        field_strength=field_band(joined["field_strength"].astype("Float64").to_numpy(float, na_value=np.nan)),
        scanner=scanner.fillna(UNKNOWN).to_numpy(str),
    )


def _is_unknown(group: str) -> bool:
    return group == UNKNOWN or group.endswith(f"/{UNKNOWN}")


def _group_rows(scans, scores, attribute, metrics, options):
    labels, persons = scans["label"].to_numpy(int), scans["person"].to_numpy(str)
    groups = scans[attribute].to_numpy(str)
    if not len(scans):
        return [{"note": "no test subject: no group"} | _counts(labels, persons)]
    masks = {group: groups == group for group in np.unique(groups)}
    counts = {group: _counts(labels[inside], persons[inside]) for group, inside in masks.items()}
    known = [group for group in masks if not _is_unknown(group)]
    reference = max(known, key=lambda group: counts[group]["subjects"]) if known else None

    asked, rows = {}, []
    for group, inside in masks.items():
        for name, metric in metrics.items():
            asked[group, name] = within(metric, inside)
        if reference is not None and group != reference:
            for name in DIFFERENCES:
                asked[group, name] = rate_difference(name, inside, masks[reference])
    results = intervals(asked, labels, scores, persons, groups=groups, **options) if asked else {}
    for (group, name), found in results.items():
        against = reference if name in DIFFERENCES else None
        involved = [group, *([against] if against else [])]
        note = _note(name, found, {member: (counts[member], labels[masks[member]]) for member in involved}, scores)
        value = dict(zip(("value", "low", "high", "seed_sd"), found))
        rows.append({"group": group, "reference": against, "metric": name, "note": note} | value | counts[group])
    return rows


def _counts(labels, persons):
    people, positives = len(np.unique(persons)), len(np.unique(persons[labels == 1]))
    return {"scans": len(labels), "subjects": people, "positives": positives, "negatives": people - positives}


def _note(name: str, found: Interval, groups, scores) -> str | None:
    """Why a value is missing, or what its reader must know."""
    remarks = []
    for group, (_, labels) in groups.items():
        cases, controls = int((labels == 1).sum()), int((labels == 0).sum())
        if name in DIFFERENCES:
            absent = (cases if DIFFERENCES[name] == "case" else controls) == 0
            if absent:
                return f"no {DIFFERENCES[name]} in {group}: no rate to compare"
        elif missing := reason_undefined(name, cases, controls).replace(" in test", f" in {group}"):
            return missing
    if np.isnan(found.value):
        broken = not np.isfinite(scores).all()
        return "a scan without a finite score: no value" if broken else "no finite value on these scans"
    for group, (count, _) in groups.items():
        few = [
            counted(count[key], noun) for key, noun in (("positives", "case"), ("negatives", "control"))
            if count[key] < FEW
        ]  # fmt: skip
        if few:
            remarks.append(f"only {' and '.join(few)} in {group}: a description, no evidence")
    if np.isnan(found.low) or np.isnan(found.high):
        remarks.append("a limit is not finite")
    elif found.low == found.high:
        remarks.append("all resamples equal: the interval has no width and cannot show the uncertainty")
    if found.undefined:
        remarks.append(f"no value in {found.undefined:.1%} of the resamples, which are left out")
    return "; ".join(remarks) or None
