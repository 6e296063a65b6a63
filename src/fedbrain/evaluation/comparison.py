"""Comparison of models on the same test subjects: DeLong's method for the AUC, the paired bootstrap, Holm's correction.

**DeLong.** The AUC of a model is a mean over pairs (case, control); its variance comes from how far each case's and each
control's own share of won pairs (its structural component) lies from that mean, and the covariance of two models on the
same scans likewise. DeLong, DeLong and Clarke-Pearson, Biometrics 44:837-845 (1988); computed from midranks in
O(n log n) after Sun and Xu, IEEE Signal Processing Letters 21:1389-1393 (2014).

**Several scans of a subject.** The components are summed within subjects and the subjects taken as the independent
units, with the covariance between the cases and the controls of one subject where a subject has both: Obuchowski,
Biometrics 53:567-578 (1997). With one scan per subject this is DeLong's variance exactly. No scan is dropped or averaged,
so the AUC is the one in every other table.

**Several training seeds.** A cell's AUC is the mean over its seeds, and a difference of cells a contrast of all their
AUCs with weights 1 / seeds and -1 / seeds: one covariance matrix over all seeds of both cells gives its variance over
subjects. The bootstrap forms the same mean in every resample.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit, ndtr, ndtri, stdtrit
from scipy.stats import rankdata

from fedbrain.errors import StudyError
from fedbrain.evaluation.bootstrap import check_options, jackknife, limits, replicates, subject_strata
from fedbrain.evaluation.calibration import CALIBRATION_METRICS
from fedbrain.evaluation.metrics import METRICS, counted, in_words, reason_undefined
from fedbrain.evaluation.predictions import (
    MIXED,
    OWN_MODELS,
    POOLED,
    Cell,
    aligned,
    cell_name,
    of_client,
    refuse_pooled_cohort,
    with_persons,
    without_model,
)
from fedbrain.tables import COMPARISONS, REAL

FEW = 10  # subjects of a class below which a test that leans on large samples is marked (ours)
FAMILIES = ("table", "client")


class DeLongTest(NamedTuple):
    """The two AUCs, the normal deviate of their difference (a - b) and its two-sided p-value; NaN where undefined."""

    auc_a: float
    auc_b: float
    z: float
    p: float


def delong_covariance(labels, scores, subjects=None) -> tuple[np.ndarray, np.ndarray]:
    """AUCs of K vectors of scores on the same scans, (K,), and the covariance of these estimates, (K, K).

    labels (N,) of 0 and 1; scores (K, N), higher for cases, ties count one half; subjects (N,), where given, the
    independent units (Obuchowski 1997), else every scan is one (DeLong 1988). The AUCs are NaN on one class or where a
    score is not finite; the covariance is NaN also where fewer than two subjects have cases or controls.
    Raises ValueError where shapes do not fit or a label is neither 0 nor 1.
    """
    parts = _components(labels, scores, subjects)
    return parts.aucs, parts.covariance


def delong_test(labels, scores_a, scores_b, *, subjects=None) -> DeLongTest:
    """Two-sided test that two models have one AUC on the population of these subjects: ``(auc_a, auc_b, z, p)``.

    labels, scores_a, scores_b (N,), and subjects (N,) where a subject has several scans (see the module). Models that
    rank all scans alike have z = 0 and p = 1. z and p are NaN on one class, with fewer than two subjects of a class, and
    where the AUCs differ but their variance is 0 (each model separates completely, one the wrong way round).
    The test leans on large samples: with fewer than about ten subjects of a class read the bootstrap beside it.
    Raises ValueError as :func:`delong_covariance`.
    """
    aucs, covariance = delong_covariance(labels, [scores_a, scores_b], subjects)
    _, _, z, p = _contrast(aucs, covariance, np.array([1.0, -1.0]))
    return DeLongTest(float(aucs[0]), float(aucs[1]), z, p)


def delong_interval(
    labels, scores, level: float = 0.95, *, logit: bool = True, small_sample: bool = True, subjects=None
) -> tuple[float, float, float]:
    """AUC and its interval by DeLong's variance: ``(auc, low, high)``.

    logit: the interval is symmetric on the logit scale and carried back, so that it stays within 0..1 and leans
    towards 0.5, as the AUC's distribution does near 1 (Pepe, The Statistical Evaluation of Medical Tests, 2003, section
    5.2.4); False gives auc -+ q se, cut off at 0 and 1.
    small_sample: q is of Student's t with Satterthwaite's degrees of freedom from the variances that cases and controls
    supply (Brunner and Munzel, Biometrical Journal 42:17-25, 2000), since a variance from three cases is itself a guess;
    False takes the normal deviate. With both False the interval is that of published reference implementations.
    subjects (N,) where a subject has several scans; degrees of freedom then count subjects (ours).
    low and high are NaN on one class, with fewer than two subjects of a class, and at an AUC of 0 or 1, where DeLong's
    variance is 0: :func:`score_interval` has a width there.
    Raises ValueError for a level outside (0, 1) and as :func:`delong_covariance`.
    """
    return mean_delong_interval(labels, [scores], level, logit=logit, small_sample=small_sample, subjects=subjects)


def mean_delong_interval(
    labels, scores_by_seed, level: float = 0.95, *, logit: bool = True, small_sample: bool = True, subjects=None
) -> tuple[float, float, float]:
    """:func:`delong_interval` of the mean AUC over training seeds; scores_by_seed (seeds, N)."""
    if not 0 < level < 1:
        raise ValueError(f"level {level} must be between 0 and 1")
    parts = _components(labels, scores_by_seed, subjects)
    weights = np.full(len(parts.aucs), 1 / len(parts.aucs))
    value, se, _, _ = _contrast(parts.aucs, parts.covariance, weights)
    value = float(np.clip(value, 0, 1))  # a mean of ones may miss 1 by rounding
    if not se > 0 or not 0 < value < 1:
        return value, np.nan, np.nan
    quantile = ndtri((1 + level) / 2)
    if small_sample:
        quantile = stdtrit(_degrees_of_freedom(parts, weights), (1 + level) / 2)
    half = quantile * se
    if logit:
        return value, *_on_logit_scale(value, half / (value * (1 - value)))
    return value, max(0.0, float(value - half)), min(1.0, float(value + half))


def score_interval(auc: float, cases: int, controls: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of an AUC from its value and the numbers of *subjects* alone, with a width also at 0 and 1.

    The values t with |auc - t| <= z sqrt(V(t)), where V is Hanley and McNeil's variance with both class sizes at their
    mean: V(t) = t (1 - t) (1 + k (1 - t) / (2 - t) + k t / (1 + t)) / (cases controls), k = (cases + controls) / 2 - 1.
    Source: Newcombe, Statistics in Medicine 25:559-573 (2006), method 5. It takes the scores' distributions as
    exponential in shape and looks at no score; where subjects have several scans it is on the safe side (ours).
    (NaN, NaN) without a subject of a class or an AUC. Raises ValueError for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level} must be between 0 and 1")
    if not cases or not controls or not 0 <= auc <= 1:
        return np.nan, np.nan
    z, k = ndtri((1 + level) / 2), (cases + controls) / 2 - 1

    def excess(t):
        variance = t * (1 - t) * (1 + k * (1 - t) / (2 - t) + k * t / (1 + t)) / (cases * controls)
        return (auc - t) ** 2 - z**2 * variance  # at most 0 within the interval

    def edge(outside, inside):
        for _ in range(60):
            middle = (outside + inside) / 2
            outside, inside = (outside, middle) if excess(middle) <= 0 else (middle, inside)
        return (outside + inside) / 2

    # The AUC itself lies within the interval; beyond it the excess rises once through 0 before 0 or 1 is reached.
    return 0.0 if auc == 0 else edge(0.0, auc), 1.0 if auc == 1 else edge(1.0, auc)


def analytic_interval(labels, scores_by_seed, subjects, level: float = 0.95) -> tuple[float, float, float, str]:
    """Mean AUC over seeds and its interval without resampling, ``(auc, low, high, note)``: ours to recommend.

    :func:`mean_delong_interval` at its defaults and, where DeLong's variance says nothing (complete separation, fewer
    than two subjects of a class), :func:`score_interval` on the numbers of subjects with cases and with controls; the
    note then says so, and is empty otherwise. labels (N,), scores_by_seed (seeds, N), subjects (N,). Measured to cover
    where the bootstrap does not: docs/evaluation.md.
    """
    labels, subjects = np.asarray(labels), np.asarray(subjects)
    value, low, high = mean_delong_interval(labels, scores_by_seed, level, subjects=subjects)
    if not np.isnan(low) or np.isnan(value):
        return value, low, high, ""
    cases, controls = (len(np.unique(subjects[labels == label])) for label in (1, 0))
    few = [counted(n, noun) for n, noun in ((cases, "case"), (controls, "control")) if n < 2]
    reason = (
        f"{' and '.join(few)} only"
        if few
        else "complete separation"
        if np.isclose(abs(value - 0.5), 0.5)
        else "no variance"
    )
    return value, *score_interval(value, cases, controls, level), f"{reason}: interval of Newcombe, from the counts"


def holm(p_values) -> np.ndarray:
    """Holm's step-down correction, (n,): the smallest level at which each hypothesis is rejected within the family.

    NaN marks a comparison without a test: it stays NaN and does not count towards the family.
    Source: Holm, Scandinavian Journal of Statistics 6:65-70 (1979).
    """
    p_values = np.asarray(p_values, dtype=float)
    result = np.full(p_values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    factors = len(tested) - np.arange(len(tested))
    result[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
    return result


def bootstrap_p(differences, difference: float) -> float:
    """Two-sided p-value from a difference's values in the resamples, (R,): twice the smaller share beyond 0.

    One is added to both counts (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 4.2.5), so
    the smallest p is 2 / (R + 1); at most 1. It goes with the percentile interval: below 0.05 about where that of 95 %
    leaves out 0. 1 where the difference is 0 in all resamples; NaN without a resample that has a value, and where all
    resamples give one difference that is not 0, from which nothing can be said.
    """
    differences = np.asarray(differences, dtype=float)
    differences = differences[~np.isnan(differences)]
    if not len(differences) or np.isnan(difference):
        return np.nan
    if differences.min() == differences.max():
        return 1.0 if differences[0] == 0 else np.nan
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1, 2 * (beyond + 1) / (len(differences) + 1)))


def compare_cells(
    predictions: Mapping[Cell, Mapping[int, pd.DataFrame]],
    *,
    clients: Sequence[str],
    reference: Cell | None = None,
    pairs: Sequence[tuple[Cell, Cell]] | None = None,
    metric: str = "auc",
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    method: str = "percentile",
    splits: pd.DataFrame | None = None,
    family: str = "table",
    own_models: Collection[str] = OWN_MODELS,
) -> pd.DataFrame:
    """Differences between cells on the same test subjects, for each client and pooled: a table :data:`COMPARISONS`.

    predictions, clients, splits: as :func:`fedbrain.evaluation.performance.performance` takes them.
    pairs: the comparisons (a, b); or reference: every other cell against this one; without both, every pair of cells.
    metric: a name in METRICS or CALIBRATION_METRICS; DeLong's test is of the AUC alone.
    method: of the interval, ``percentile`` or ``bca``. All cells meet the same resamples, in which cases and controls
    are drawn as in :mod:`fedbrain.evaluation.bootstrap`; several seeds enter as the mean over seeds of the metric in
    each resample (see the module).
    family: what Holm's correction is over: all comparisons of the ``table`` (any false finding among all clients), or
    those of one ``client`` apart. Without a p-value (one class) there is no test and nothing is counted.
    own_models: as performance takes them.

    A missing value has a note that says why. Raises StudyError where predictions do not fit (see
    :func:`fedbrain.evaluation.predictions.aligned`), cells were tested on different scans, or a pair names a cell that
    is not there, and ValueError for an unknown metric, method, level or family.
    """
    known = METRICS | CALIBRATION_METRICS
    if metric not in known:
        raise ValueError(f"metric {metric!r} is not known; known: {', '.join(known)}")
    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is not known; known: {', '.join(FAMILIES)}")
    check_options(resamples, method, level)
    refuse_pooled_cohort(clients)
    chosen = _pairs(list(predictions), reference, pairs)
    scans, scores = _on_the_same_scans(predictions, clients, {cell for pair in chosen for cell in pair})
    absent, rows = without_model(predictions, splits), []
    if chosen:
        scans = with_persons(scans, splits)
        for client in (*clients, POOLED):
            mask = of_client(scans, client)
            of_cells = {cell: by_seed[:, mask] for cell, by_seed in scores.items()}
            options = dict(metric=metric, resamples=resamples, level=level, seed=seed, method=method)
            said = {cell: absent.get((cell, client), "") for cell in of_cells}
            mixed = {cell for cell in of_cells if cell[2] in own_models and client == POOLED}
            rows += _client_rows(client, scans[mask], of_cells, chosen, said, mixed, **options)
    table = pd.DataFrame(rows, columns=list(COMPARISONS)).astype(COMPARISONS)
    p = table["p_delong"].fillna(table["p_bootstrap"]) if metric == "auc" else table["p_bootstrap"]
    groups = table["client"] if family == "client" else pd.Series("", index=table.index)
    for _, members in p.groupby(groups, sort=False):
        corrected = holm(members.to_numpy(float, na_value=np.nan))
        table.loc[members.index, "p_holm"] = pd.array(corrected, dtype=REAL)
    return table


class _Components(NamedTuple):
    """AUCs (K,), their covariance (K, K), what of it cases and controls supply, and how many subjects have them."""

    aucs: np.ndarray
    covariance: np.ndarray
    of_cases: np.ndarray
    of_controls: np.ndarray
    with_cases: int
    with_controls: int


def _components(labels, scores, subjects) -> _Components:
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    subjects = np.arange(len(labels)) if subjects is None else np.asarray(subjects)
    if labels.ndim != 1 or scores.ndim != 2 or scores.shape[1] != len(labels) or subjects.shape != labels.shape:
        raise ValueError(f"labels {labels.shape}, scores {scores.shape}, subjects {subjects.shape} do not fit")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 (control) or 1 (case)")
    case = labels == 1
    cases, controls = int(case.sum()), int((~case).sum())
    nothing = np.full((len(scores), len(scores)), np.nan)
    if not cases or not controls or not np.isfinite(scores).all():
        return _Components(np.full(len(scores), np.nan), nothing, nothing, nothing, cases, controls)
    overall = rankdata(scores, axis=1)
    of_cases = (overall[:, case] - rankdata(scores[:, case], axis=1)) / controls  # (K, cases): share of pairs won
    of_controls = 1 - (overall[:, ~case] - rankdata(scores[:, ~case], axis=1)) / cases  # (K, controls)
    aucs = of_cases.mean(axis=1)

    subject = np.unique(subjects, return_inverse=True)[1]
    people = subject.max() + 1
    case_sums = np.stack([np.bincount(subject[case], row, people) for row in of_cases - aucs[:, None]])
    control_sums = np.stack([np.bincount(subject[~case], row, people) for row in of_controls - aucs[:, None]])
    with_cases, with_controls = len(np.unique(subject[case])), len(np.unique(subject[~case]))
    if with_cases < 2 or with_controls < 2:
        return _Components(aucs, nothing, nothing, nothing, with_cases, with_controls)
    between = case_sums @ control_sums.T * (people / (people - 1) / (cases * controls))
    from_cases = case_sums @ case_sums.T * (with_cases / (with_cases - 1) / cases**2)
    from_controls = control_sums @ control_sums.T * (with_controls / (with_controls - 1) / controls**2)
    covariance = from_cases + from_controls + between + between.T
    return _Components(aucs, covariance, from_cases, from_controls, with_cases, with_controls)


def _contrast(aucs, covariance, weights) -> tuple[float, float, float, float]:
    """Value, standard error, normal deviate and two-sided p of a weighted sum of AUCs."""
    value, variance = float(weights @ aucs), float(weights @ covariance @ weights)
    scale = float(np.abs(weights) @ np.abs(covariance) @ np.abs(weights))
    if np.isnan(variance):
        return value, np.nan, np.nan, np.nan
    if variance <= 1e-12 * scale:  # nothing but rounding, or (clustered, few subjects) no estimate
        nothing = abs(value) < 1e-12
        return value, 0.0, *((0.0, 1.0) if nothing else (np.nan, np.nan))
    se = np.sqrt(variance)
    return value, float(se), float(value / se), float(2 * ndtr(-abs(value) / se))


def _degrees_of_freedom(parts: _Components, weights) -> float:
    of_cases, of_controls = (float(weights @ part @ weights) for part in (parts.of_cases, parts.of_controls))
    shares = of_cases**2 / (parts.with_cases - 1) + of_controls**2 / (parts.with_controls - 1)
    return (of_cases + of_controls) ** 2 / shares


def _on_logit_scale(value, half):
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def _pairs(cells, reference, pairs):
    if pairs is not None and reference is not None:
        raise ValueError("give pairs or a reference, not both")
    if pairs is None and reference is None:
        return list(combinations(cells, 2))
    if pairs is None:
        pairs = [(cell, reference) for cell in cells if cell != reference]
    missing = sorted({cell_name(cell) for pair in pairs for cell in pair if cell not in cells})
    if missing:
        raise StudyError(f"no predictions of {', '.join(missing)}: there is nothing to compare; train the cell first")
    return list(pairs)


def _on_the_same_scans(predictions, clients, cells):
    """The scans that all cells share, and each cell's scores (seeds, N).

    A cell may lack all scans of a client (``local`` of a client without training scans): its scores there are NaN.
    """
    own = {cell: aligned(cell, predictions[cell], clients) for cell in predictions if cell in cells}
    parts = {}  # by client: its scans, and the cell that they are from
    for cell, (scans, _) in own.items():
        for client, part in scans.groupby("cohort"):
            part = part.reset_index(drop=True)
            known, first = parts.setdefault(client, (part, cell))
            if not part.astype(str).equals(known.astype(str)):
                raise StudyError(
                    f"{cell_name(cell)} was tested on other scans than {cell_name(first)}: a comparison needs the same "
                    "ones; train both on the same splits"
                )
    if not parts:
        return next(iter(own.values()), (None,))[0], {cell: scores for cell, (_, scores) in own.items()}
    everything = pd.concat([parts[client][0] for client in sorted(parts)], ignore_index=True)
    scores = {}
    for cell, (scans, of_seeds) in own.items():
        scores[cell] = np.full((len(of_seeds), len(everything)), np.nan)
        scores[cell][:, everything["cohort"].isin(set(scans["cohort"])).to_numpy(bool)] = of_seeds
    return everything, scores


def _client_rows(client, scans, scores, pairs, said, mixed, *, metric, resamples, level, seed, method):
    labels, persons = scans["label"].to_numpy(int), scans["person"].to_numpy(str)
    people, positives = len(np.unique(persons)), len(np.unique(persons[labels == 1]))
    function = (METRICS | CALIBRATION_METRICS)[metric]
    counts = {"subjects": people, "positives": positives, "negatives": people - positives}
    missing = reason_undefined(metric, int((labels == 1).sum()), int((labels == 0).sum()))
    values = {cell: np.array([function(labels, s) for s in by_seed]) for cell, by_seed in scores.items()}
    usable = {} if missing else {cell: scores[cell] for cell, of_seeds in values.items() if np.isfinite(of_seeds).all()}
    resampled = _Resampled(usable, labels, persons, metric, function, resamples, seed, method) if usable else None
    rows = []
    for a, b in pairs:
        row = {"cell_a": cell_name(a), "cell_b": cell_name(b), "client": client, "metric": metric} | counts
        row |= {"seeds_a": len(scores[a]), "seeds_b": len(scores[b])}
        row |= {"value_a": _mean(values[a]), "value_b": _mean(values[b])}
        absent = [cell for cell in (a, b) if cell not in usable]
        if missing:
            notes = [missing]
        elif absent:
            notes = [f"{cell_name(cell)}: {said[cell] or f'no {in_words(metric)} on these scans'}" for cell in absent]
        else:
            numbers, notes = _tested(resampled, a, b, values, counts, level)
            row |= numbers
        notes += [f"{cell[2]} {MIXED}" for cell in dict.fromkeys((a, b)) if cell in mixed]
        rows.append(row | {"note": "; ".join(notes) or None})
    return rows


class _Resampled:
    """What all cells of a client share: their means over seeds in the same resamples, and DeLong's covariance."""

    def __init__(self, scores, labels, persons, metric, function, resamples, seed, method):
        stacked = np.concatenate(list(scores.values()))  # (all seeds of all cells, N)
        ends = np.cumsum([len(by_seed) for by_seed in scores.values()])
        places = {cell: slice(end - len(scores[cell]), end) for cell, end in zip(scores, ends)}
        self.weights = {cell: np.zeros(len(stacked)) for cell in scores}  # of a cell's mean over seeds
        for cell, place in places.items():
            self.weights[cell][place] = 1 / len(scores[cell])
        subject, strata = subject_strata(labels, persons)
        drawn = replicates({metric: function}, labels, stacked, subject, strata, resamples=resamples, seed=seed)
        influence = jackknife({metric: function}, labels, stacked, subject, strata)[metric] if method == "bca" else None
        with np.errstate(invalid="ignore"):  # calibration slopes may be infinite
            self.means = {cell: drawn[metric][place].mean(axis=0) for cell, place in places.items()}
            self.left_out = influence is not None and {
                cell: [part[place].mean(axis=0) for part in influence] for cell, place in places.items()
            }
        self.delong = delong_covariance(labels, stacked, persons) if metric == "auc" else None


def _tested(resampled: _Resampled, a, b, values, counts, level) -> tuple[dict, list[str]]:
    """The difference of two cells with its interval and p-values, and what their reader must know."""
    row = _difference(values[a], values[b])
    with np.errstate(invalid="ignore"):
        differences = resampled.means[a] - resampled.means[b]
        parts = None
        if resampled.left_out:
            parts = [x - y for x, y in zip(resampled.left_out[a], resampled.left_out[b])]
    row["low"], row["high"] = limits(differences, row["difference"], level, parts)
    single = 1 in (counts["positives"], counts["negatives"])  # its class does not vary: no test
    row["p_bootstrap"] = np.nan if single else bootstrap_p(differences, row["difference"])
    if resampled.delong:
        row["p_delong"] = _contrast(*resampled.delong, resampled.weights[a] - resampled.weights[b])[3]
    notes = []
    if np.isnan(row["low"]) or np.isnan(row["high"]):
        notes.append("a limit is not finite")
    elif np.ptp(differences) == 0:
        alike = row["difference"] == 0
        notes.append(f"all resamples {'without a difference' if alike else 'equal: they cannot show the uncertainty'}")
    few = [
        counted(counts[key], noun) for key, noun in (("positives", "case"), ("negatives", "control"))
        if counts[key] < FEW
    ]  # fmt: skip
    if few:
        rough = "no test, and limits that leave out that class" if single else "p-values and limits are rough"
        notes.append(f"{' and '.join(few)} only: {rough}")
    return row, notes


def _mean(values):
    return float(values.mean()) if np.isfinite(values).all() else np.nan


def _difference(values_a, values_b):
    """The difference of means over seeds, and what of its uncertainty comes from the choice of seeds."""
    spread = np.nan
    if min(len(values_a), len(values_b)) > 1:
        spread = float(np.sqrt(sum(values.var(ddof=1) / len(values) for values in (values_a, values_b))))
    return {"difference": float(values_a.mean() - values_b.mean()), "seed_se": spread}
