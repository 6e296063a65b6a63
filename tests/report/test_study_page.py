"""The first page says what the tables say, in words that cannot be misread."""

import numpy as np
import pandas as pd
import pytest
from docutils.core import publish_parts
from jinja2 import Template

from fedbrain.report.study_page import study_page
from fedbrain.tables import EFFICIENCY, EXCLUDED, PERFORMANCE

STUDY = {
    "title": "A study",
    "seed": 3,
    "class_names": ["control", "dementia"],
    "splits": {"validation": 0.2, "test": 0.3, "link_ids": True},
    "preprocessing": {"extractor": "deepbet", "intensity": "encoder"},
    "encoder": {"name": "sam_med3d", "weights": "random", "batch_size": 1},
    "evaluation": {"resamples": 1000, "level": 0.95, "method": "percentile"},
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


@pytest.fixture
def arguments():
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
    return {
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
