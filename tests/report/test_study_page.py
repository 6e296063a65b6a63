"""The first page says what the tables say, in words that cannot be misread."""

import re

import numpy as np
import pandas as pd
import pytest
from docutils.core import publish_parts
from jinja2 import Environment

from fedbrain.cohorts.intake import ON_EXCLUDE_LIST
from fedbrain.report.study_page import study_page
from fedbrain.tables import (
    CALIBRATION,
    COMPARISONS,
    DUPLICATES,
    EFFICIENCY,
    EXCLUDED,
    HARMONIZATION,
    PERFORMANCE,
    SITE_EFFECTS,
    SITE_VARIANCE,
    SUBGROUPS,
    THRESHOLDS,
)

STUDY = {
    "title": "A study",
    "seed": 3,
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


@pytest.fixture
def arguments(evaluated):
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
        "passed_over": {"a": passed_over.iloc[:0], "b": passed_over},
        "volumes": {"a": volumes, "b": volumes},
        "quality": {"a": volumes.assign(flagged=0, kept=[1, 1, 0]), "b": volumes.assign(flagged=0, kept=[1, 1, 0])},
        "splits": splits,
        "duplicates": a_table(DUPLICATES, []),
        "performance": pd.DataFrame(rows)[list(PERFORMANCE)],
        "cells": [["linear", "frozen", "fedavg", [0, 1]], ["linear", "frozen", "local", [0]]],
        "summaries": [summary(), summary(), summary("local")],
    }


def rendered(text):
    """As the report makes it: a Jinja template first, with Snakemake's settings, then reStructuredText."""
    text = Environment(trim_blocks=True, lstrip_blocks=True).from_string(text).render()
    return publish_parts(text, writer_name="html", settings_overrides={"halt_level": 2})["html_body"]


def test_images_that_occur_twice_are_a_warning_without_an_id(arguments):
    rows = [
        (1, "a", "s1", 0),
        (1, "b", "s9", 1),
        (2, "a", "s2", 1),
        (2, "a", "s2", 1),
        (3, "b", "s3", 0),
        (3, "a", "s4", 0),
    ]
    table = pd.DataFrame(rows, columns=["image", "cohort", "subject", "label"])
    table["scan"], table["same"] = "sub-secret", "voxels"
    html = rendered(study_page(STUDY, **arguments | {"duplicates": a_table(DUPLICATES, table)}))
    assert "a and b: 2 images occur more than once, 2 of them under several subject ids" in html
    assert "a: 1 image occurs more than once, 0 of them" in html
    assert html.count("The diagnoses of 1 contradict each other") == 1
    assert "secret" not in html
    assert "more than once" not in rendered(study_page(STUDY, **arguments))


def test_what_scans_and_config_say_is_shown_as_it_is_and_never_computed(arguments):
    told = "{% endraw %}{{ 7 * 191 }}{# gone #}{% raw %}"
    volumes = arguments["volumes"]["a"].assign(reason=[None, None, f"the series is called {told}"])
    study = STUDY | {"title": f"A study {told}", "class_names": ["control {{7*191}}", "case"]}
    html = rendered(study_page(study, **arguments | {"volumes": {"a": volumes, "b": volumes}}))
    assert "1337" not in html
    assert html.count(told) == 3  # title and warnings of two cohorts
    assert "how to tell case from control {{7*191}} on" in html


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
    assert "do not stand for their session: b 3 (another was chosen: 2; contrast-enhanced: 1)." in html
    assert "AUC of b: one class only" in html
    assert "65.0 (7.1)" in html  # of the two subjects whose scans could be used
    assert "Fraction" not in html


def test_what_is_flagged_dropped_and_excluded_is_counted_and_the_choice_is_said(arguments):
    html = section(rendered(study_page(STUDY, **arguments)), "Quality of the scans")
    assert "No scan is dropped for its quality" in html
    assert "at least 0.93 for mask overlap with the template" in html
    assert "they are no part of this report" in html
    assert '<a href="quality/a.html"' in html
    assessed = arguments["quality"]["a"].astype({"reason": "string"})
    assessed.loc[1, ["flagged", "kept", "reason"]] = (
        1,
        0,
        "mask_dice 0.9 is under the limit 0.93; cjv 0.9 (z +4.0, median 0.5)",
    )
    listed = pd.concat([arguments["excluded"]["a"], pd.DataFrame({"reason": [ON_EXCLUDE_LIST]})], ignore_index=True)
    arguments |= {"quality": arguments["quality"] | {"a": assessed}, "excluded": arguments["excluded"] | {"a": listed}}
    settings = {"outlier_z": 4, "limits": {}, "drop": "limits", "in_report": True}
    html = rendered(study_page(STUDY | {"quality": settings}, **arguments))
    block = section(html, "Quality of the scans")
    assert "robust z over 4)" in block
    assert "Scans beyond a limit are dropped" in block
    assert "must stay with the data" in block
    # The cell with the link is no plain text.
    flagged_for = "mask overlap with the template (1); coefficient of joint variation (1)"
    assert cells_of(block)[:7] == ["a", flagged_for, "3", "1", "1", "1", "1"]
    assert cells_of(section(html, "Cohorts"))[:6] == ["a", "5", "2", "1", "1", "1"]


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


def test_site_effects_are_told_with_chance_and_with_what_else_tells_cohorts_apart(arguments):
    html = section(rendered(study_page(STUDY, **arguments)), "Site effects")
    assert "balanced accuracy of <strong>0.83 [0.73, 0.93]</strong>, where 0.50 is chance" in html
    assert "among controls alone with 0.77 [0.67, 0.87], from age and sex alone with 0.52" in html
    assert "In half of the channels 31% or more of the variance" in html
    assert "AUC of b</th>" in html
    assert "0.88</td>" in html
    assert "33</td>" in html
    assert "hospitals that share no embedding cannot compute it" in html
    assert "No tuning of this study harmonizes the embeddings" in html
    without = rendered(study_page(STUDY, **arguments | {"site_effects": {}, "site_variance": {}}))
    assert "was not measured" in section(without, "Site effects")


def test_what_a_harmonization_moved_and_sent_is_on_the_page(arguments):
    study = STUDY | {"tuning": {"combat": {"kind": "frozen", "harmonization": "combat", "covariates": ["age"]}}}
    row = {"client": "a", "subjects": 12, "numbers_up": 1155, "bytes_up": 9240, "bytes_down": 9216}
    table = a_table(HARMONIZATION, [row | {"location": 1.234, "scale": 0.876, "iterations": 9, "constant_channels": 0}])
    html = section(rendered(study_page(study, **arguments | {"harmonization": {"combat": table}})), "Site effects")
    cells = ["combat", "age", "a", "12", "1.23", "0.88", "9.24 kB", "9.22 kB"]
    assert re.search("</td>.*?".join(f">{re.escape(cell)}" for cell in cells) + "</td>", html, re.DOTALL)
    assert "without labels" in html


def test_a_fitted_intensity_says_where_its_scale_is_from_and_what_travelled(arguments):
    def told(**preprocessing):
        arguments["study"] = STUDY | {"preprocessing": {"nyul": {"scale": "client"}} | preprocessing}
        return study_page(**arguments)

    assert "nyul" not in told(intensity="encoder")
    assert "nothing of it left the cohort" in told(intensity="nyul")
    assert "eleven numbers and two counts travelled" in told(intensity="nyul", nyul={"scale": "shared"})
