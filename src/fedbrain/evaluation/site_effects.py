"""How well the cohort of a scan can be told from its features, and how much of their variance lies between cohorts.

A head that is trained on several cohorts can use what tells them apart wherever they differ in their share of cases. So this
asks a classifier for the cohort itself: multinomial logistic regression with a ridge penalty (C = 1), features standardized within each
fold, cohorts weighted alike, cross-validated by person. It is computed among controls alone, too, since where cohorts differ in
their share of cases the disease tells them apart as well; what remains may still be age, sex and recruitment.

This sees the features of all cohorts in one place. A study on one machine can do that; hospitals that share no embedding cannot.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedbrain.cohorts.splits import external_cohorts
from fedbrain.evaluation.bootstrap import intervals
from fedbrain.evaluation.metrics import auc
from fedbrain.tables import SITE_EFFECTS, SITE_PROJECTION, SITE_VARIANCE

FOLDS = 5  # or as many as the smallest cohort has persons
ALL, HELD_OUT, CONTROLS = "all", "held out", "controls"
NONE = "none"  # harmonization


def site_effects(
    features: Mapping[tuple[str, str], np.ndarray],
    scans: pd.DataFrame,
    *,
    cohorts: Sequence[str],
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    method: str = "percentile",
) -> pd.DataFrame:
    """Accuracy, balanced accuracy and one-against-the-rest AUC of telling the cohort: a table :data:`SITE_EFFECTS`.

    features: (N, F) by the features' name and the harmonization that they went through ("none" or its name). A feature that is
    missing (NaN) of any scan is left out. scans: of the same N scans the columns cohort, person, label (0 or 1) and
    split. cohorts: in the order of the config.

    Harmonized features are measured on the scans that the harmonization was not fitted on (validation and test), since on the
    others cohorts are alike by construction; the same features without it on these and on all scans. An external cohort is not among the
    former: its location and scale are of its test scans. Intervals are over persons, drawn within
    cohorts, and take the cross-validated predictions as given. Chance is 1 / cohorts for balanced accuracy, the largest
    cohort's share for accuracy, 0.5 for AUC.
    """
    options = {"resamples": resamples, "level": level, "seed": seed, "method": method}
    rows = []
    for place, chosen, values in _subsets(features, scans):
        mine = scans[chosen]
        complete = np.isfinite(values[chosen]).all(0)
        notes = [] if complete.all() else [f"{int((~complete).sum())} feature(s) missing of some scans left out"]
        compared = list(cohorts)
        if place["side"] == HELD_OUT and (external := [name for name in cohorts if name in external_cohorts(scans)]):
            compared = [name for name in cohorts if name not in external]
            notes.append(f"{', '.join(external)}: external, adjusted by its test scans themselves, left out")
        rows += [
            place | row
            for row in _measured(
                values[chosen][:, complete], mine, cohorts=compared, seed=seed, notes=notes, options=options
            )
        ]
    return pd.DataFrame(rows, columns=list(SITE_EFFECTS)).astype(SITE_EFFECTS)


def site_variance(features: Mapping[tuple[str, str], np.ndarray], scans: pd.DataFrame) -> pd.DataFrame:
    """The share of each feature's variance that lies between cohorts: a table :data:`SITE_VARIANCE`, a row a feature.

    Arguments as in :func:`site_effects`; a person's first scan stands for it. See :func:`variance_shares`.
    """
    parts = []
    for place, chosen, values in _subsets(features, scans):
        once = chosen & ~scans.assign(chosen=chosen).duplicated(["chosen", "person"]).to_numpy()
        eta, omega = variance_shares(values[once], scans["cohort"].to_numpy(str)[once])
        parts.append(pd.DataFrame(place | {"feature": np.arange(len(eta)), "eta_squared": eta, "omega_squared": omega}))
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(SITE_VARIANCE))
    return table[list(SITE_VARIANCE)].astype(SITE_VARIANCE)


def site_projection(features: Mapping[str, np.ndarray], scans: pd.DataFrame) -> pd.DataFrame:
    """Each person's first scan on the two directions of largest variance of the unharmonized features: :data:`SITE_PROJECTION`.

    features: (N, F) by harmonization, "none" among them: its features, standardized, give the directions for all.
    """
    once = ~scans.duplicated("person").to_numpy()
    plain = features[NONE][once]
    mean, spread = plain.mean(0), plain.std(0)
    varies = spread > 0
    standard = (plain - mean)[:, varies] / spread[varies]
    _, values, directions = np.linalg.svd(standard, full_matrices=False)
    # The sign of a direction is free: the larger entries are made positive, so that a picture stays as it is.
    directions = directions[:2] * np.sign(directions[:2].sum(1, keepdims=True) + 1e-300)
    shares = values[:2] ** 2 / (values**2).sum()
    parts = []
    for name, own in features.items():
        places = (own[once] - mean)[:, varies] / spread[varies] @ directions.T  # (persons, 2)
        part = scans.loc[once, ["cohort", "label", "split"]].assign(harmonization=name, first=places[:, 0])
        parts.append(part.assign(second=places[:, 1], first_share=shares[0], second_share=shares[1]))
    return pd.concat(parts, ignore_index=True)[list(SITE_PROJECTION)].astype(SITE_PROJECTION)


def predicted_cohorts(
    values: np.ndarray, cohort: np.ndarray, persons: np.ndarray, *, folds: int, seed: int = 0
) -> np.ndarray:
    """Cross-validated probabilities (N, K) of the cohorts 0 to K - 1; no person is in the fold that predicts it and in its training.

    values (N, F), cohort (N,) of int, persons (N,).
    """
    probabilities = np.zeros((len(values), cohort.max() + 1))
    for train, test in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(values, cohort, persons):
        classifier = LogisticRegression(C=1.0, class_weight="balanced", max_iter=5000)
        model = make_pipeline(StandardScaler(), classifier).fit(values[train], cohort[train])
        probabilities[np.ix_(test, model.classes_)] = model.predict_proba(values[test])
    return probabilities


def variance_shares(values: np.ndarray, cohort: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eta squared and omega squared (F,) of features (N, F) over groups (N,), by one-way analysis of variance.

    Eta squared is the sum of squares between groups over the total, and (K - 1) / (N - 1) by chance; omega squared (Hays, Statistics
    for Psychologists, 1963) takes that off and is 0 by chance, so it may be negative. NaN where a feature is constant or N <= K.
    """
    groups, number = np.unique(cohort, return_inverse=True)
    total = ((values - values.mean(0)) ** 2).sum(0)
    means = np.stack([values[number == k].mean(0) for k in range(len(groups))])  # (K, F)
    between = np.bincount(number) @ (means - values.mean(0)) ** 2
    freedom = len(values) - len(groups)
    if freedom < 1:
        return np.full(len(total), np.nan), np.full(len(total), np.nan)
    within = (total - between) / freedom
    with np.errstate(invalid="ignore", divide="ignore"):
        eta = np.where(total > 0, between / total, np.nan)
        omega = np.where(total > 0, (between - (len(groups) - 1) * within) / (total + within), np.nan)
    return eta, omega


def accuracy(cohort, predicted, weights=None):
    """Share of scans whose cohort was told, with the signature of a metric (weights (N,) or (N, resamples))."""
    weights = np.ones(len(cohort)) if weights is None else np.asarray(weights, dtype=float)
    return (np.asarray(cohort) == np.asarray(predicted)) @ weights / weights.sum(0)


def balanced_accuracy(cohort, predicted, weights=None):
    """The same within each cohort, averaged over cohorts."""
    cohort, predicted = np.asarray(cohort), np.asarray(predicted)
    weights = np.ones(len(cohort)) if weights is None else np.asarray(weights, dtype=float)
    inside = [cohort == k for k in np.unique(cohort)]
    return np.mean([accuracy(cohort[own], predicted[own], weights[own]) for own in inside], axis=0)


def _subsets(features, scans) -> Iterator[tuple[dict, np.ndarray, np.ndarray]]:
    """What is measured: its place in a table, which scans, and the features of all scans."""
    harmonized = {name for name, harmonization in features if harmonization != NONE}
    controls = (scans["label"] == 0).to_numpy(bool)
    held_out = ((scans["split"] != "train") & ~scans["cohort"].isin(external_cohorts(scans))).to_numpy(bool)
    for (name, harmonization), values in features.items():
        sides = ([ALL] if harmonization == NONE else []) + ([HELD_OUT] if name in harmonized else [])
        for side in sides:
            for label in (ALL, CONTROLS):
                chosen = (held_out if side == HELD_OUT else True) & (
                    controls if label == CONTROLS else np.ones(len(scans), bool)
                )
                yield {"features": name, "harmonization": harmonization, "side": side, "label": label}, chosen, values


def _measured(values, scans, *, cohorts, seed, notes, options) -> list[dict]:
    persons = scans.groupby("cohort")["person"].nunique().reindex(list(cohorts), fill_value=0)
    measured = [name for name in cohorts if persons[name] >= 2]
    if len(measured) < len(cohorts):
        left_out = ", ".join(name for name in cohorts if name not in measured)
        notes = [*notes, f"{left_out}: fewer than two persons, left out"]
    inside = scans["cohort"].isin(measured).to_numpy(bool)
    values, scans = values[inside], scans[inside]
    counts = {"scans": len(scans), "subjects": scans["person"].nunique()}
    if len(measured) < 2 or not values.shape[1]:
        reason = "fewer than two cohorts to tell apart" if values.shape[1] else "no feature is there for every scan"
        return [counts | {"cohort": ALL, "metric": "balanced_accuracy", "note": "; ".join([*notes, reason])}]
    cohort = scans["cohort"].map({name: k for k, name in enumerate(measured)}).to_numpy(int)
    person = scans["person"].to_numpy(str)
    folds = int(min(FOLDS, persons[measured].min()))
    probabilities = predicted_cohorts(values, cohort, person, folds=folds, seed=seed)
    options = options | {"groups": cohort}
    predicted = probabilities.argmax(1)
    found = intervals(
        {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy}, cohort, [predicted], person, **options
    )
    chance = {"accuracy": np.bincount(cohort).max() / len(cohort), "balanced_accuracy": 1 / len(measured)}
    rows = [{"cohort": ALL, "metric": name, "chance": chance[name]} | _limits(found[name]) for name in found]
    for k, name in enumerate(measured):
        one = intervals({"auc": auc}, (cohort == k).astype(int), [probabilities[:, k]], person, **options)["auc"]
        rows.append({"cohort": name, "metric": "auc", "chance": 0.5} | _limits(one))
    widthless = ["all resamples equal: the interval has no width and cannot show the uncertainty"]
    return [
        counts | {"folds": folds, "note": "; ".join(notes + widthless * (row["low"] == row["high"])) or None} | row
        for row in rows
    ]


def _limits(found) -> dict:
    return {"value": found.value, "low": found.low, "high": found.high}
