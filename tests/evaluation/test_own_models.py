"""Cells whose clients have models of their own: what their rows say where one has none, and where scores are mixed."""

import numpy as np
import pandas as pd
import pytest

from fedbrain.evaluation.calibration import calibration_curves
from fedbrain.evaluation.comparison import compare_cells
from fedbrain.evaluation.performance import performance
from fedbrain.evaluation.personalisation import personalisation
from fedbrain.evaluation.predictions import aligned, without_model
from fedbrain.evaluation.subgroups import subgroups
from fedbrain.evaluation.thresholds import performance_at_thresholds
from fedbrain.tables import PERSONALISATION, PREDICTIONS, SPLITS

CLIENTS = ("north", "south", "west")
OWN, GLOBAL = ("linear", "frozen", "ditto"), ("linear", "frozen", "ditto_global")
ABSENT = "7 test subjects, but no model for them"


def predictions(seed, clients=CLIENTS, tag=""):
    rng = np.random.default_rng(seed)
    parts = []
    for client in clients:
        labels = np.array([0, 0, 0, 0, 1, 1, 1])
        subjects = [f"{client}{tag}{n}" for n in range(7)]
        part = {"cohort": client, "subject": subjects, "session": "", "label": labels}
        parts.append(pd.DataFrame(part | {"score": 1 / (1 + np.exp(-rng.normal(labels - 0.5)))}))
    return pd.concat(parts, ignore_index=True).astype(PREDICTIONS)


@pytest.fixture
def cells():
    """West has no model of its own with seed 1."""
    return {OWN: {0: predictions(0), 1: predictions(1, CLIENTS[:2])}, GLOBAL: {0: predictions(2), 1: predictions(3)}}


def of(table, cell, client):
    keys = ["head", "tuning", "aggregation", "client"]
    return table[(table[keys] == [*cell, client]).all(axis=1)]


def test_a_client_without_a_model_in_one_seed_is_left_out_of_all(cells):
    scans, scores = aligned(OWN, cells[OWN], CLIENTS)
    assert set(scans["cohort"]) == {"north", "south"}
    assert scores.shape == (2, 14)


def test_the_note_is_of_the_cell_that_lacks_what_others_have(cells):
    notes = without_model(cells)
    assert set(notes) == {(OWN, "west"), (OWN, "pooled")}
    assert notes[OWN, "west"].startswith(ABSENT)
    assert notes[OWN, "pooled"] == "without west, which has no model of its own"
    away = predictions(0)[["cohort", "subject", "label"]].assign(person=pd.NA)
    away["split"] = np.where(away["cohort"] == "west", "test", "train")
    assert set(without_model(cells, away.astype(SPLITS))) == {(OWN, "west")}  # external: no part of pooled anyway
    assert without_model({OWN: cells[OWN] | {1: predictions(1)}, GLOBAL: cells[GLOBAL]}) == {}


def test_every_table_says_so(cells):
    options = {"clients": CLIENTS, "resamples": 50}
    scans = {c: pd.DataFrame({"subject": [f"{c}{n}" for n in range(7)], "session": "", "sex": "F"}) for c in CLIENTS}
    validation = {cell: {seed: predictions(seed, tag="v") for seed in by_seed} for cell, by_seed in cells.items()}
    tables = [
        performance(cells, **options),
        calibration_curves(cells, clients=CLIENTS, bins=2),
        performance_at_thresholds(cells, validation, **options),
        subgroups(cells, scans, attributes=["sex"], **options),
    ]
    for table in tables:
        west, pooled = of(table, OWN, "west"), of(table, OWN, "pooled")
        assert len(west)
        assert west["note"].str.startswith(ABSENT).all()
        assert pooled["note"].str.contains("without west, which has no model of its own").all()
        for client in ("west", "pooled"):
            assert not of(table, GLOBAL, client)["note"].fillna("").str.contains("model").any()
    assert (of(tables[0], OWN, "west")["subjects"] == 0).all()
    assert (of(tables[0], OWN, "pooled")["subjects"] == 14).all()


def test_scores_of_several_models_are_marked_where_they_are_pooled(cells):
    options = {"clients": CLIENTS, "resamples": 50, "own_models": ["ditto", "local"]}
    table = performance(cells, **options)
    marked = table[table["note"].fillna("").str.contains("mixes scores of different models")]
    assert set(zip(marked["aggregation"], marked["client"])) == {("ditto", "pooled")}
    table = compare_cells(cells, **options)
    marked = table[table["note"].fillna("").str.contains("ditto mixes scores of different models")]
    assert marked["client"].tolist() == ["pooled"]


def test_own_models_are_compared_with_what_is_there(cells):
    """Ditto with its global model and local; FedPer without a global model has local alone."""
    local, other = ("linear", "frozen", "local"), ("linear", "frozen", "fedper")
    cells |= {local: {0: predictions(4)}, other: {0: predictions(5)}}
    parts = [
        ("north", 6, "train"),
        ("south", 2, "train"),
        ("north", 7, "test"),
        ("south", 7, "test"),
        ("west", 7, "test"),
    ]
    rows = [(c, f"{c}{s}{n}", f"{c}{s}{n}", 0, s) for c, count, s in parts for n in range(count)]
    splits = pd.DataFrame(rows, columns=list(SPLITS)).astype(SPLITS)
    options = {"clients": CLIENTS, "splits": splits, "resamples": 80, "own_models": ["ditto", "fedper", "local"]}
    table = personalisation(cells, {OWN: GLOBAL, other: None}, **options)
    assert list(table.columns) == list(PERSONALISATION)
    pairs = table.drop_duplicates(["against", "cell_a"])[["cell_a", "against", "cell_b"]].to_numpy().tolist()
    assert pairs == [
        ["linear/frozen/ditto", "global", "linear/frozen/ditto_global"],
        ["linear/frozen/ditto", "local", "linear/frozen/local"],
        ["linear/frozen/fedper", "local", "linear/frozen/local"],
    ]
    assert table.drop_duplicates("client").set_index("client")["training"].to_dict() == {
        "north": 6,
        "south": 2,
        "west": 0,
        "pooled": 8,
    }
    expected = compare_cells(cells, pairs=[(OWN, GLOBAL), (OWN, local), (other, local)], **options)
    pd.testing.assert_frame_equal(table.drop(columns=["against", "training"]), expected)
    assert ABSENT in table.loc[(table["client"] == "west") & (table["against"] == "global"), "note"].item()
    assert personalisation(cells, {}, **options).empty
