"""The first page says what the tables say, in words that cannot be misread."""

import re

import numpy as np
import pandas as pd
import pytest
from docutils.core import publish_parts
from jinja2 import Template

from fedbrain.report.study_page import study_page
from fedbrain.tables import (
    CALIBRATION,
    COMPARISONS,
    EFFICIENCY,
    EXCLUDED,
    PERFORMANCE,
    SUBGROUPS,
    THRESHOLDS,
)

STUDY = {
    "title": "A study",
    "seed": 3,
    "class_names": ["control", "dementia"],
    "splits": {"validation": 0.2, "test": 0.3, "link_ids": True},
    "preprocessing": {"extractor": "deepbet", "intensity": "encoder"},
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


@pytest.fixture
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
        "drawn": "fedavg",
    }


@pytest.fixture
def arguments(evaluated):
    scans = pd.DataFrame(
        {"scan": ["1", "2", "3"], "subject": ["s1", "s2", "s3"], "age": [60.0, 70.0, 80.0], "sex": ["F", "M", "F"]}
    )
    excluded = pd.DataFrame([{"row": 5, "reason": "no diagnosis"}]).reindex(columns=list(EXCLUDED))
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
        "bytes_down": 3080.0,
        "bytes_up": 3080.0,
        "bytes_run": 30800.0,
        "full_bytes": 4 * 92_925_698.0,
        "gmacs": 52.4,
        "gmacs_step": 0.00005,
        "gmacs_reference": 184.3,
        "peak_memory": 500_000_000,
        "seconds_round": 0.5,
        "seconds_scan": 0.01,
        "seconds_run": 2.0,
        "device": "cpu",
    }
    cells = [{"head": "linear", "tuning": "frozen", "aggregation": name} | costs for name in ("fedavg", "local")]
    return evaluated | {
        "phantoms": [],
        "datasets": {"a": "ADNI2", "b": "Charité"},
        "efficiency": pd.DataFrame(cells)[list(EFFICIENCY)].astype(EFFICIENCY),
        "scans": {"a": scans, "b": scans},
        "excluded": {"a": excluded, "b": excluded.iloc[:0]},
        "volumes": {"a": volumes, "b": volumes},
        "splits": splits,
        "performance": pd.DataFrame(rows)[list(PERFORMANCE)],
        "cells": [["linear", "frozen", "fedavg", [0, 1]], ["linear", "frozen", "local", [0]]],
        "summaries": [summary(), summary(), summary("local")],
    }


def rendered(text):
    """As the report makes it: a Jinja template first, then reStructuredText."""
    return publish_parts(Template(text).render(), writer_name="html", settings_overrides={"halt_level": 2})["html_body"]


def test_counts_results_and_cost_are_those_of_the_tables(arguments):
    html = rendered(study_page(STUDY, **arguments))
    assert "0.71 [0.52, 0.88]" in html
    assert "reaches 0.58 [0.44, 0.71]" in html  # what knowing the site alone is worth
    assert "local training reaches 0.60" in html
    assert "3.08 kB" in html  # 770 parameters of 4 bytes, per round and client
    assert "770</td>" in html
    assert "372 MB" in html  # the whole network each way
    assert "184.3</td>" in html
    assert "options of lora" in html
    assert "training of linear" in html
    assert "a: 1 scan failed: constant" in html
    assert "a: 1 left out: no diagnosis" in html
    assert "AUC of b: one class only" in html
    assert "65.0 (7.1)" in html  # of the two subjects whose scans could be used
    assert "Fraction" not in html


def test_random_weights_and_phantoms_are_said_first_and_only_if_true(arguments):
    html = rendered(study_page(STUDY, **arguments | {"phantoms": ["a", "b"]}))
    assert html.index("Untrained encoder") < html.index("This study asks")
    assert "All cohorts are simulated" in html
    trained = [summary(weights="sam_med3d_turbo.pth sha256:0")]
    arguments |= {"summaries": trained, "cells": arguments["cells"][:1], "efficiency": arguments["efficiency"][:1]}
    html = rendered(study_page(STUDY, **arguments))
    assert "Untrained" not in html
    assert "simulated" not in html


def test_an_encoder_that_has_seen_the_test_cohort_is_an_alarm(arguments):
    brainiac = STUDY | {"encoder": {"name": "brainiac", "weights": "/data/BrainIAC.ckpt"}}
    html = rendered(study_page(brainiac, **arguments))
    assert "Leakage" in html
    assert "a (ADNI)" in html
    assert html.index("Leakage") < html.index("This study asks")
    assert "b (" not in html[html.index("Leakage") : html.index("This study asks")]
    untrained = brainiac | {"encoder": {"name": "brainiac", "weights": "random"}}
    assert "Leakage" not in rendered(study_page(untrained, **arguments))
    sam = STUDY | {"encoder": {"name": "sam_med3d", "weights": "/data/sam_med3d_turbo.pth"}}
    assert "Leakage" not in rendered(study_page(sam, **arguments))


def test_the_winner_is_said_to_be_picked_and_chance_is_named(arguments):
    page = study_page(STUDY, **arguments)
    assert "picked after looking at the test subjects" in page
    arguments["performance"].loc[0, "low"] = 0.45
    assert "includes 0.5, that is chance" in study_page(STUDY, **arguments)


def test_text_of_users_is_text(arguments):
    html = rendered(study_page(STUDY | {"title": "A {{ 7 * 7 }} <b>*study*"}, **arguments))
    assert "49" not in html.split("</h1>")[0]
    assert "<b>" not in html


def test_a_study_without_any_auc_still_has_a_page(arguments):
    arguments["performance"]["value"] = np.nan
    assert "No federated cell has a pooled AUC" in rendered(study_page(STUDY, **arguments))


def section(html, title):
    return html[html.index(f"<h1>{title}</h1>") :].split("<h1>")[1]


def cells_of(html):
    return re.findall(r"<td[^>]*>([^<]*)</td>", html)


def test_comparisons_give_the_difference_with_its_interval_first_and_p_after(arguments):
    html = section(rendered(study_page(STUDY, **arguments)), "Comparisons")
    assert "Every pair of cells is compared" in html
    assert "1 of 3 stay below 0.05" in html
    assert "(marked *) are 1 of the tests, 1 of those below 0.05 among them" in html
    cells = cells_of(html)
    assert cells[:6] == ["linear / frozen / fedavg", "site only", "pooled", "+0.13 [+0.03, +0.23]", "0.034", "0.068"]
    assert cells[12:16] == ["+0.11 [+0.01, +0.21]", "&lt; 0.001*", "0.001*", "0.021"]
    named = dict(STUDY["evaluation"], comparisons={"reference": ["linear", "frozen", "local"], "family": "client"})
    html = section(rendered(study_page(STUDY | {"evaluation": named}, **arguments)), "Comparisons")
    assert "Every cell is compared with <strong>linear / frozen / local</strong>" in html
    assert "those of one client" in html


def test_a_long_table_is_opened_by_the_reader_and_a_very_long_one_points_to_the_file(arguments):
    arguments["comparisons"] = a_table(
        COMPARISONS, [comparison(f"h/t/{n}", LOCAL, "a", 0.0, 0.5, 1.0) for n in range(250)]
    )
    html = section(rendered(study_page(STUDY, **arguments)), "Comparisons")
    assert "<summary" in html
    assert html.count("<tr>") == 1 + 200
    assert "The first 200 of 250 rows; all are in results/evaluation/comparisons.tsv" in html


def test_calibration_and_thresholds_by_hand(arguments):
    for metric, value in (("calibration_slope", 0.44), ("calibration_intercept", -0.15), ("brier", 0.19)):
        row = performance_row("linear", "fedavg", "pooled", value, value - 0.1, value + 0.1, metric=metric)
        arguments["performance"] = pd.concat([arguments["performance"], pd.DataFrame([row])], ignore_index=True)
    cells = cells_of(section(rendered(study_page(STUDY, **arguments)), "Calibration and thresholds"))
    place = cells.index("fedavg")  # first in this table
    assert cells[place + 1 : place + 3] == ["0.44 [0.34, 0.54]", "-0.15 [-0.25, -0.05]"]
    assert cells[place + 3 : place + 5] == ["0.20 (0.20)", "0.19 [0.09, 0.29]"]  # mean over seeds, and by chance
    chosen = cells.index("pooled")
    assert cells[chosen + 1 : chosen + 5] == ["0.41 [0.31, 0.51]", "–", "0.37 (SD 0.04)", "0.72 [0.62, 0.82]"]
    html = rendered(study_page(STUDY, **arguments))
    assert "a: no case among the validation scans: 0.5 stands, for 1 cell" in html


def test_small_groups_are_warned_of_and_only_the_drawn_cells_are_shown(arguments):
    html = section(rendered(study_page(STUDY, **arguments)), "Subgroups")
    assert "1 of the 2 groups have fewer than ten cases" in html
    cells = cells_of(html)
    assert cells[:6] == ["sex", "F", "30", "30", "", "0.81 [0.61, 1.01]"]
    assert cells[8:10] == ["reference", "reference"]
    assert cells[10:16] == ["sex", "M", "4", "30", "too few", "0.62 [0.42, 0.82]"]
    assert cells[18:20] == ["-0.21 [-0.41, -0.01]", "+0.13 [-0.07, +0.33]"]
    assert "0.55" not in html
    arguments["subgroups"] = arguments["subgroups"].iloc[:0]
    assert "asks for no subgroups" in rendered(study_page(STUDY, **arguments))


def test_few_subjects_take_delongs_interval_and_the_page_says_whose(arguments):
    rows = [performance_row("linear", "fedavg", "pooled", 0.71, 0.31, 0.93, metric="auc_delong")]
    arguments["performance"] = pd.concat([arguments["performance"], pd.DataFrame(rows)], ignore_index=True)
    html = rendered(study_page(STUDY, **arguments))
    assert "0.71 [0.31, 0.93]" in html
    assert "0.71 [0.52, 0.88]" not in html
    assert "AUCs of pooled have DeLong" in html
    arguments["performance"][["positives", "negatives"]] = 40
    html = rendered(study_page(STUDY, **arguments))
    assert "0.71 [0.52, 0.88]" in html
    assert "DeLong's interval instead" not in html


def test_a_study_of_one_cell_has_nothing_to_compare(arguments):
    arguments["comparisons"] = arguments["comparisons"].iloc[:0]
    assert "nothing to compare it with" in rendered(study_page(STUDY, **arguments))


def test_a_limit_that_is_not_finite_is_a_dash_beside_the_other(arguments):
    row = performance_row("linear", "fedavg", "pooled", 2.5, 0.31, metric="calibration_slope")
    arguments["performance"] = pd.concat([arguments["performance"], pd.DataFrame([row])], ignore_index=True)
    assert "2.50 [0.31, –]" in rendered(study_page(STUDY, **arguments))
