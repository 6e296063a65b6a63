"""A study of two cohorts, a and b, small enough to count by hand, and a larger one from the real evaluation."""

import numpy as np
import pandas as pd

from fedbrain.evaluation.calibration import calibration_curves
from fedbrain.evaluation.comparison import compare_cells
from fedbrain.evaluation.performance import performance
from fedbrain.evaluation.subgroups import subgroups
from fedbrain.evaluation.thresholds import performance_at_thresholds
from fedbrain.figures.auc_by_head import auc_by_head
from fedbrain.figures.auc_forest import auc_forest
from fedbrain.figures.auc_table import auc_table
from fedbrain.figures.style import save_figure
from fedbrain.report.figures import smaller
from fedbrain.tables import (
    CALIBRATION,
    COMPARISONS,
    DUPLICATES,
    EFFICIENCY,
    EXCLUDED,
    PERFORMANCE,
    PREDICTIONS,
    QUALITY,
    SCANS,
    SITE_EFFECTS,
    SITE_VARIANCE,
    SPLITS,
    SUBGROUPS,
    THRESHOLDS,
    VOLUMES,
)

RULES = ("simpleavg", "fedavg", "fedce", "centralized", "local")

STUDY = {
    "title": "A study",
    "seed": 3,
    "labels": {"CN": 0, "AD": 1},
    "class_names": ["control", "dementia"],
    "splits": {"validation": 0.2, "test": 0.3, "link_ids": True},
    "preprocessing": {"extractor": "deepbet", "intensity": "encoder"},
    "quality": {"outlier_z": 3.5, "limits": {"mask_dice": {"min": 0.93}}, "drop": "none", "in_report": False},
    "encoder": {"name": "sam_med3d", "weights": "random", "batch_size": 1},
    "evaluation": {
        "resamples": 1000,
        "level": 0.95,
        "method": "percentile",
        "comparisons": {"reference": None, "family": "table"},
    },
    "training": {"rounds": 5, "heads": {"linear": {"rounds": 9}}, "tunings": {}},
    "head": {},
    "tuning": {"lora": {"rank": 4}},
    "aggregation": {"fedce": {"combine": "plus"}},
}


def performance_row(head, aggregation, client, value, low=np.nan, high=np.nan, note=None, metric="auc"):
    tuning = "none" if head == "site_only" else "frozen"
    row = {"head": head, "tuning": tuning, "aggregation": aggregation, "client": client, "metric": metric}
    row |= {"value": value, "low": low, "high": high, "seed_sd": 0.012, "seeds": 2}
    return row | {"subjects": 9, "positives": 4, "negatives": 5, "note": note}


def summary(aggregation="fedavg", weights="random (seed 3)", warnings=()):
    return {
        "cell": {"head": "linear", "tuning": "frozen", "aggregation": aggregation},
        "best_round": {"global": 3},
        "device": "cpu",
        "weights": weights,
        "clients": {"a": {}, "b": {}},
        "warnings": list(warnings),
        "versions": {"torch": "2"},
    }


FEDAVG, LOCAL = "linear/frozen/fedavg", "linear/frozen/local"


def a_table(columns, rows):
    return pd.DataFrame(rows).reindex(columns=list(columns)).astype(columns)


def comparison(a, b, client, difference, p, holm, note=None):
    row = {"cell_a": a, "cell_b": b, "client": client, "difference": difference, "low": difference - 0.1}
    row |= {"high": difference + 0.1, "seed_se": 0.021, "p_delong": p, "p_bootstrap": 0.5, "p_holm": holm, "note": note}
    return row | {"metric": "auc", "subjects": 9, "positives": 4, "negatives": 5}


def of_cell(aggregation, **values):
    return {"head": "linear", "tuning": "frozen", "aggregation": aggregation, "client": "pooled"} | values


def threshold_row(rule, metric, value, note=None, client="pooled"):
    numbers = {"value": value, "low": value - 0.1, "high": value + 0.1}
    chosen = {"threshold": 0.37 if rule == "youden" else 0.5, "threshold_sd": 0.04 if rule == "youden" else None}
    return of_cell("fedavg", client=client, rule=rule, metric=metric, note=note) | numbers | chosen


def subgroup_row(group, metric, value, cases, reference=None, aggregation="fedavg"):
    few = f"only {cases} cases in {group}: a description, no evidence" if cases < 10 else None
    row = of_cell(aggregation, attribute="sex", group=group, reference=reference, metric=metric, value=value)
    return row | {"low": value - 0.2, "high": value + 0.2, "positives": cases, "negatives": 30, "note": few}


def site(features, label="all", side="all", harmonization="none", **values):
    return {"features": features, "harmonization": harmonization, "side": side, "label": label} | values


def told_cohorts():
    """How well the cohort is told from channel means, and from age and sex alone."""
    counts = {"scans": 40, "subjects": 33, "folds": 5}
    rows = []
    for place, value in ((site("mean"), 0.83), (site("mean", "controls"), 0.77), (site("age and sex"), 0.52)):
        balanced = {"metric": "balanced_accuracy", "cohort": "all", "chance": 0.5, "value": value}
        rows.append(place | counts | balanced | {"low": value - 0.1, "high": value + 0.1})
        rows += [
            place | counts | {"metric": "auc", "cohort": name, "chance": 0.5, "value": value + 0.05} for name in "ab"
        ]
    return a_table(SITE_EFFECTS, rows)


def evaluated():
    rough = "4 cases only: p-values and limits are rough"
    return {
        "comparisons": a_table(
            COMPARISONS,
            [
                comparison(FEDAVG, LOCAL, "pooled", 0.11, 0.0004, 0.0012, rough),
                comparison(FEDAVG, "site_only/none/none", "pooled", 0.13, 0.034, 0.068),
                comparison(FEDAVG, LOCAL, "a", -0.05, 0.6, 0.6),
            ],
        ),
        "calibration": a_table(
            CALIBRATION,
            [
                of_cell("fedavg", seed=seed, bin=number, ece=ece, ece_by_chance_95=0.2)
                for seed, ece in enumerate((0.1, 0.3))
                for number in (1, 2)
            ],
        ),
        "thresholds": a_table(
            THRESHOLDS,
            [
                threshold_row("fixed", "sensitivity", 0.41),
                threshold_row("youden", "sensitivity", 0.72),
                threshold_row("youden", "specificity", 0.63),
                threshold_row("youden", "sensitivity", 0.52, "no case among the validation scans: 0.5 stands", "a"),
            ],
        ),
        "subgroups": a_table(
            SUBGROUPS,
            [
                subgroup_row("F", "auc", 0.81, 30),
                subgroup_row("M", "auc", 0.62, 4),
                subgroup_row("M", "tpr_difference", -0.21, 4, reference="F"),
                subgroup_row("M", "fpr_difference", 0.13, 4, reference="F"),
                subgroup_row("M", "auc", 0.55, 4, aggregation="local"),
            ],
        ),
        "site_effects": {"sam_med3d": told_cohorts()},
        "site_variance": {
            "sam_med3d": a_table(
                SITE_VARIANCE,
                [site("mean", feature=k, omega_squared=share) for k, share in enumerate((0.2, 0.31, 0.9))],
            )
        },
        "harmonization": {},
        "drawn": "fedavg",
    }


def arguments():
    """Everything that a page is made of, small enough to count by hand."""
    scans = pd.DataFrame(
        {"scan": ["1", "2", "3"], "subject": ["s1", "s2", "s3"], "age": [60.0, 70.0, 80.0], "sex": ["F", "M", "F"]}
    )
    excluded = pd.DataFrame([{"row": 5, "reason": "no diagnosis"}]).reindex(columns=list(EXCLUDED))
    passed_over = pd.DataFrame({"reason": ["contrast-enhanced", "another was chosen", "another was chosen"]})
    volumes = pd.DataFrame(
        {"scan": ["1", "2", "3"], "status": ["ok", "ok", "failed"], "reason": [None, None, "constant"]}
    )
    splits = pd.DataFrame(
        {"cohort": ["a", "a", "b", "b"], "subject": ["s1", "s2", "s1", "s2"], "label": [0, 1, 0, 1]}
        | {"split": ["train", "test", "test", "validation"]}
    )
    rows = [
        performance_row("linear", "fedavg", "pooled", 0.71, 0.52, 0.88),
        performance_row("linear", "fedavg", "a", 0.65, 0.40, 0.90),
        performance_row("linear", "fedavg", "b", np.nan, note="one class only"),
        performance_row("linear", "local", "pooled", 0.60, 0.41, 0.80),
        performance_row("site_only", "none", "pooled", 0.58, 0.44, 0.71),
    ]
    costs = {
        "seeds": 2,
        "trained": 770,
        "trained_share": 770 / 92_925_698,
        "sent": 770,
        "sent_share": 770 / 92_925_698,
        "bytes_down": 3080.0,
        "bytes_up": 3080.0,
        "bytes_run": 30800.0,
        "bytes_share": 0.00001,
        "rounds": 5.0,
        "full_bytes": 4 * 92_925_698.0,
        "gmacs": 52.4,
        "gmacs_step": 0.00005,
        "gmacs_reference": 184.3,
        "peak_memory": 500_000_000,
        "peak_memory_client": 400_000_000,
        "seconds_client": 0.25,
        "seconds_round": 0.5,
        "seconds_scan": 0.01,
        "seconds_run": 2.0,
        "device": "cpu",
    }
    cells = [{"head": "linear", "tuning": "frozen", "aggregation": name} | costs for name in ("fedavg", "local")]
    return evaluated() | {
        "study": STUDY,
        "phantoms": [],
        "datasets": {"a": "ADNI2", "b": "Charité"},
        "efficiency": pd.DataFrame(cells)[list(EFFICIENCY)].astype(EFFICIENCY),
        "scans": {"a": scans, "b": scans},
        "excluded": {"a": excluded, "b": excluded.iloc[:0]},
        "passed_over": {"a": passed_over.iloc[:0], "b": passed_over},
        "volumes": {"a": volumes, "b": volumes},
        "quality": {"a": volumes.assign(flagged=0, kept=[1, 1, 0]), "b": volumes.assign(flagged=0, kept=[1, 1, 0])},
        "splits": splits,
        "duplicates": a_table(DUPLICATES, []),
        "performance": pd.DataFrame(rows)[list(PERFORMANCE)],
        "cells": [["linear", "frozen", "fedavg", [0, 1]], ["linear", "frozen", "local", [0]]],
        "summaries": [summary(), summary(), summary("local")],
    }


def made_up(folder, *, cohorts=("north", "east", "south", "west"), people=60, resamples=100):
    """A study of the size of a real one: tables from the real evaluation of made-up scores, figures of the real modules.

    folder: where figures are written. Returns the arguments of a Material.
    """
    draw = np.random.default_rng(0)
    scans, splits, quality, volumes, excluded = {}, [], {}, {}, {}
    for cohort in cohorts:
        names = [f"{cohort}{number:03}" for number in range(people)]
        table = pd.DataFrame({"scan": [f"sub-{name}" for name in names], "subject": names, "session": None})
        table["label"] = draw.integers(0, 2, people)
        table["age"], table["sex"] = draw.normal(73, 7, people).round(1), draw.choice(["F", "M"], people)
        table["site"], table["diagnosis"] = draw.choice(["one", "two"], people), "AD"
        scans[cohort] = table.reindex(columns=list(SCANS)).astype(SCANS)
        state = table[["scan", "subject", "session"]].assign(status="ok", reason=None)
        state.loc[0, ["status", "reason"]] = "failed", "the file is cut off: 512 of 1024 bytes; fetch it again"
        volumes[cohort] = state.reindex(columns=list(VOLUMES)).astype(VOLUMES)
        assessed = state.assign(shard=0, flagged=0, kept=(state["status"] == "ok").astype(int))
        assessed = assessed.reindex(columns=list(QUALITY)).astype(QUALITY)
        sound = state["status"] == "ok"
        assessed["mask_dice"] = draw.normal(0.96, 0.004, people).round(4)
        assessed["cjv"] = draw.normal(0.6, 0.02, people).round(4)
        assessed.loc[~sound, ["mask_dice", "cjv"]] = None
        quality[cohort] = assessed
        excluded[cohort] = pd.DataFrame(
            {"reason": ["diagnosis MCI is not among the study's labels"] * 7 + ["no diagnosis"] * 2}
        ).reindex(columns=list(EXCLUDED))
        used = table[sound]
        splits.append(
            pd.DataFrame(
                {"cohort": cohort, "subject": used["subject"], "person": used["subject"], "label": used["label"]}
            ).assign(split=draw.choice(["train", "validation", "test"], len(used), p=[0.5, 0.2, 0.3]))
        )
    splits = pd.concat(splits, ignore_index=True).astype(SPLITS)
    cells = [(head, "frozen", rule) for head in ("linear", "conv_s", "conv_l") for rule in RULES]
    cells.append(("linear", "lora", "fedavg"))
    predicted = {"test": {}, "validation": {}}
    for side, of_side in predicted.items():
        rows = splits[splits["split"] == side]
        for place, cell in enumerate(cells):
            of_side[cell] = {}
            for seed in (0, 1):
                score = 1 / (1 + np.exp(-draw.normal((0.6 + 0.08 * place) * (rows["label"].astype(float) - 0.5), 1.0)))
                frame = rows[["cohort", "subject", "label"]].assign(session=None, score=score)
                of_side[cell][seed] = frame.reindex(columns=list(PREDICTIONS)).astype(PREDICTIONS)
    options = {"clients": list(cohorts), "splits": splits}
    some = {"resamples": resamples}
    result = arguments() | {
        "study": STUDY | {"title": "A made-up study of four cohorts"},
        "phantoms": list(cohorts),
        "datasets": {cohort: cohort for cohort in cohorts},
        "scans": scans,
        "excluded": excluded,
        "passed_over": {cohort: pd.DataFrame({"reason": pd.Series(dtype="string")}) for cohort in cohorts},
        "volumes": volumes,
        "quality": quality,
        "splits": splits,
        "cells": [[*cell, [0, 1]] for cell in cells],
        "performance": performance(predicted["test"], **options, **some),
        "comparisons": compare_cells(predicted["test"], **options, **some),
        "calibration": calibration_curves(predicted["test"], **options, bins=4),
        "thresholds": performance_at_thresholds(predicted["test"], predicted["validation"], **options, **some),
        "subgroups": subgroups(predicted["test"], scans, **options, **some),
    }
    one = result["efficiency"].iloc[:1]
    result["efficiency"] = pd.concat(
        [one.assign(head=head, tuning=tuning, aggregation=rule) for head, tuning, rule in cells], ignore_index=True
    )
    result["summaries"] = [
        summary() | {"cell": dict(zip(("head", "tuning", "aggregation"), cell)), "clients": dict.fromkeys(cohorts, {})}
        for cell in cells
        for _ in range(2)
    ]
    for name, drawn in (
        ("auc_forest", auc_forest(result["performance"])),
        ("auc_table", auc_table(result["performance"], list(cohorts))),
        ("auc_by_head", auc_by_head(result["performance"], list(cohorts))),
    ):
        save_figure(drawn, folder / f"{name}.svg", folder / f"{name}.png")
    result["figures"] = {path.stem: smaller(path) for path in sorted(folder.glob("*.svg"))}
    result["versions"] = {"python": "3.11.0", "fedbrain": "0.1.0", "snakemake": "9.27.1"}
    return result
