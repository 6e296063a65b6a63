import numpy as np
import pandas as pd
import pytest

from fedbrain.registry import REFERENCES
from fedbrain.tables import HISTOGRAM, PERFORMANCE

COHORTS = ["north", "south", "controls"]


@pytest.fixture
def performance():
    """Three heads, two tunings, all aggregations; the cohort "controls" has one class only."""
    rows, rng = [], np.random.default_rng(0)
    for head in ("linear", "conv_s", "conv_l"):
        for tuning in ("frozen", "lora"):
            for aggregation in ("simpleavg", "fedavg", "fedce", "rate_my_lora", "centralized", "local"):
                for client, (subjects, cases) in {
                    "north": (40, 18),
                    "south": (22, 9),
                    "controls": (5, 0),
                    "pooled": (67, 27),
                }.items():
                    value = rng.uniform(0.65, 0.9) if client != "controls" else None
                    row = {"head": head, "tuning": tuning, "aggregation": aggregation, "client": client}
                    row |= {"metric": "auc", "value": value, "seeds": 3, "seed_sd": 0.01}
                    row |= {"low": value and value - 0.12, "high": value and value + 0.08}
                    row |= {"subjects": subjects, "positives": cases, "negatives": subjects - cases}
                    row["note"] = None if value else "one class only in test: 5 controls, no case: no AUC"
                    rows.append(row)
    site = rows[3] | {"head": "site_only", "tuning": "none", "aggregation": "none", "value": 0.61}
    return pd.DataFrame([*rows, site])[list(PERFORMANCE)].astype(PERFORMANCE)


@pytest.fixture
def efficiency(performance):
    cells = performance[performance["head"] != "site_only"][["head", "tuning", "aggregation"]].drop_duplicates()
    sizes = {"linear": 1.2e5, "conv_s": 1e8, "conv_l": 7e8}
    silent = cells["aggregation"].isin(REFERENCES)
    run = cells["head"].map(sizes).mask(silent, 0.0)
    cells = cells.assign(bytes_run=run, bytes_down=run / 19, bytes_up=run / 21, rounds=10.0, seeds=3, full_bytes=4e8)
    return cells.assign(sent=(run / 84).astype(int), sent_share=run / 84e8).reset_index(drop=True)


@pytest.fixture
def cohorts():
    return list(COHORTS)


@pytest.fixture
def histograms():
    """Three scanners whose scales differ twentyfold, the same tissue after normalization."""
    rng, result = np.random.default_rng(1), {}
    for cohort, scale in zip(COHORTS, (60.0, 300.0, 1200.0)):
        z = np.concatenate([rng.normal(-0.8, 0.35, 20_000), rng.normal(0.9, 0.3, 30_000)])
        result[cohort] = pd.concat(
            [counted("before", scale * (z + 4) / 4, scale / 400), counted("after", z, 0.01)]
        ).astype(HISTOGRAM)
    return result


def counted(stage, values, width):
    bins, counts = np.unique(np.floor(values / width), return_counts=True)
    return pd.DataFrame({"stage": stage, "start": bins * width, "width": width, "count": counts})


@pytest.fixture
def rounds():
    rng, rows = np.random.default_rng(2), []
    for rule in ("fedce", "rate_my_lora", "fedavg"):
        for seed in range(3):
            for number in range(6):
                weights = rng.dirichlet([20, 12, 8])
                rows += [(rule, seed, number, client, weight) for client, weight in zip(COHORTS, weights)]
    return pd.DataFrame(rows, columns=["aggregation", "seed", "round", "client", "weight"])
