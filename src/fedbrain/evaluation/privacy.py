"""The privacy table: how well attacks tell the training subjects of each client from its test subjects.

Members are a client's training subjects, non-members its test subjects, which no part of the training or of the choice of a
round has seen. Validation subjects are neither: they chose the round. The attacks are in :mod:`fedbrain.evaluation.membership`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fedbrain.errors import StudyError
from fedbrain.evaluation.bootstrap import intervals
from fedbrain.evaluation.comparison import analytic_interval
from fedbrain.evaluation.membership import at_rate, attack_curve, least_fpr, likelihood_ratio, loss_score
from fedbrain.evaluation.metrics import auc, counted
from fedbrain.evaluation.performance import ANALYTIC
from fedbrain.evaluation.predictions import POOLED, Cell, cell_name, of_client, refuse_pooled_cohort, with_persons
from fedbrain.evaluation.reported import FEW
from fedbrain.tables import MEMBERSHIP_CURVES, PRIVACY

ATTACKS = ("loss", "lira")
RATE = 0.01  # the false-positive rate that is asked for
ENOUGH = 10  # non-members called members at a rate, from which on its true-positive rate is hardly biased (ours)
AT_RATE, AT_LEAST = f"tpr_at_fpr_{RATE}", "tpr_at_least_fpr"
ROWS = ("auc", ANALYTIC, AT_RATE, AT_LEAST)

_KEYS = ["cohort", "subject", "session"]


def privacy(
    released: Mapping[tuple[Cell, int], pd.DataFrame],
    shadows: Mapping[tuple[Cell, int], Sequence[pd.DataFrame]],
    *,
    clients: Sequence[str],
    splits: pd.DataFrame | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    method: str = "percentile",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both attacks on the released model of each cell and seed: a table PRIVACY, and their ROC curves, a table MEMBERSHIP_CURVES.

    released: for each cell (head, tuning, aggregation) and seed a table MEMBERS of the model that each client was given, with every
    scan of its training and test subjects. shadows: the same of each shadow model, with its own members; scans of which it says
    nothing may be missing. clients: the cohorts in the order of the config; each gets its rows. splits: table SPLITS, whose persons
    are the units of the bootstrap.

    A client's scans are attacked with that client's model, and its shadow logits are fitted apart from other clients'. "pooled" are
    the scans of all clients that have both members and non-members. Each metric is over scans, its interval over subjects with
    all their scans, drawn within members and within non-members; members and nonmembers count subjects, a person once.
    Raises StudyError where a scan stands twice in a table, or a cohort is not among the clients.
    """
    refuse_pooled_cohort(clients)
    options = {"resamples": resamples, "level": level, "seed": seed, "method": method}
    rows, curves = [], []
    for (cell, number), table in released.items():
        scans, scores = _attacked(f"{cell_name(cell)}, seed {number}", table, shadows[cell, number], clients)
        scans = with_persons(scans, splits)
        both = [name for name in clients if scans.loc[of_client(scans, name), "member"].nunique() == 2]
        named = dict(zip(("head", "tuning", "aggregation"), cell)) | {"seed": number}
        for client in (*clients, POOLED):
            chosen = scans["cohort"].isin(both).to_numpy() if client == POOLED else of_client(scans, client)
            own = scans[chosen]
            for attack in ATTACKS:
                whose = named | {"client": client, "attack": attack}
                told = {"shadows": len(shadows[cell, number]) if attack == "lira" else 0}
                rows += [whose | told | row for row in _rows(own, scores[attack][chosen], options)]
                rates = zip(*attack_curve(own["member"], scores[attack][chosen]))
                curves += [whose | {"fpr": fpr, "tpr": tpr} for fpr, tpr in rates]
    return (
        pd.DataFrame(rows, columns=list(PRIVACY)).astype(PRIVACY),
        pd.DataFrame(curves, columns=list(MEMBERSHIP_CURVES)).astype(MEMBERSHIP_CURVES),
    )


def _attacked(name, table, shadows, clients):
    """The scans of the released model in one order, and each attack's scores of them, (N,)."""
    scans = _indexed(table, name)
    if unknown := sorted(set(table["cohort"]) - set(clients)):
        raise StudyError(
            f"{name}: scans of cohort {', '.join(unknown)}, which is not among the clients; delete results/privacy"
        )
    models = [
        _indexed(shadow, f"{name}, shadow {number}").reindex(scans.index) for number, shadow in enumerate(shadows)
    ]
    logits = _numbers(scans["logit"])
    under = np.array([_numbers(model["logit"]) for model in models]).reshape(len(models), len(scans))
    inside = np.array([_numbers(model["member"]) == 1 for model in models]).reshape(under.shape)
    scans = scans.reset_index()
    ratios = np.full(len(scans), np.nan)
    for client in clients:
        own = of_client(scans, client)
        if models and own.any():
            ratios[own] = likelihood_ratio(logits[own], under[:, own], inside[:, own])
    return scans, {"loss": loss_score(logits), "lira": ratios}


def _indexed(table, name):
    """A table MEMBERS by scan, in the order of cohort, subject and session."""
    result = table.assign(session=table["session"].astype("string").fillna("")).set_index(_KEYS).sort_index()
    if result.index.duplicated().any():
        raise StudyError(f"{name}: a scan stands twice; delete results/privacy and run again")
    return result


def _numbers(column) -> np.ndarray:
    return column.astype("Float64").to_numpy(float, na_value=np.nan)


def _rows(scans, scores, options):
    members, persons = scans["member"].to_numpy(int), scans["person"].to_numpy(str)
    counts = {"members": len(np.unique(persons[members == 1])), "nonmembers": len(np.unique(persons[members == 0]))}
    least = least_fpr(counts["nonmembers"])
    rates = {AT_RATE: RATE, AT_LEAST: least}
    missing = _reason_missing(scores, **counts)
    results = {}
    if not missing:
        metrics = {"auc": auc} | {name: at_rate(rate) for name, rate in rates.items()}
        results = {name: found[:3] for name, found in intervals(metrics, members, [scores], persons, **options).items()}
        _, low, high, remark = analytic_interval(members, np.array([scores]), persons, options["level"])
        results[ANALYTIC] = results["auc"][0], low, high
    rows = []
    for metric in ROWS:
        value, low, high = results.get(metric, (np.nan,) * 3)
        note = missing
        if not note and metric == AT_RATE and least > RATE:
            value, low, high = (np.nan,) * 3
            note = (
                f"{counted(counts['nonmembers'], 'non-member')}: a false-positive rate below {least:.2g} cannot be told; "
                f"see {AT_LEAST}"
            )
        elif not note and metric in rates and counts["nonmembers"] * rates[metric] < ENOUGH:
            note = "few non-members set the threshold: too high on average, and the interval too narrow"
        elif not note and metric == "auc" and min(counts.values()) < FEW:
            note = f"fewer than {FEW} members or non-members: {ANALYTIC} has the better interval"
        elif not note and metric == ANALYTIC:
            note = remark.partition(": ")[2]  # what comes before speaks of cases and controls
        rate = {"fpr": rates.get(metric, np.nan)}
        rows.append({"metric": metric, "value": value, "low": low, "high": high, "note": note or None} | rate | counts)
    return rows


def _reason_missing(scores, members, nonmembers) -> str:
    if not members:
        return "no member: no subject of it trains this model"
    if not nonmembers:
        return "no non-member: no test subject"
    if broken := int((~np.isfinite(scores)).sum()):
        return f"{counted(broken, 'scan')} without a score: too few shadow models, or a logit that is not finite"
    return ""
