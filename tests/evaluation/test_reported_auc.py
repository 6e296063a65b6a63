import pandas as pd
import pytest

from fedbrain.evaluation.reported import BOOTSTRAP, DELONG, interval_words, reported_auc
from fedbrain.tables import PERFORMANCE


def a_row(client, metric, low, high, positives, negatives, note=None):
    row = {"head": "linear", "tuning": "frozen", "aggregation": "fedavg", "client": client, "metric": metric}
    row |= {"value": 0.8, "low": low, "high": high, "positives": positives, "negatives": negatives, "note": note}
    return row | {"subjects": positives + negatives, "seeds": 1}


@pytest.fixture
def table():
    rows = [
        a_row("small", "auc", 0.79, 0.81, 19, 300, "all resamples equal"),
        a_row("large", "auc", 0.75, 0.85, 20, 20),
        a_row("large", "auc_delong", 0.74, 0.86, 20, 20),
        a_row("small", "auc_delong", 0.6, 0.9, 19, 300),
        a_row("small", "brier", 0.1, 0.2, 19, 300),
    ]
    return pd.DataFrame(rows).reindex(columns=list(PERFORMANCE)).astype(PERFORMANCE)


def test_delongs_interval_stands_where_a_class_has_fewer_than_twenty_subjects(table):
    rows = reported_auc(table)
    assert rows["metric"].tolist() == ["auc", "auc"]
    assert rows["interval"].tolist() == [DELONG, BOOTSTRAP]
    assert rows[["low", "high"]].to_numpy(float).tolist() == [[0.6, 0.9], [0.75, 0.85]]
    assert rows["note"].isna().all()  # what was said of the bootstrap's interval is not said of the other
    assert interval_words(rows, 0.9) == "90 % interval (bootstrap or DeLong)"


def test_a_table_without_it_keeps_the_bootstrap(table):
    rows = reported_auc(table[table["metric"] != "auc_delong"])
    assert rows["interval"].tolist() == [BOOTSTRAP, BOOTSTRAP]
    assert rows["low"].tolist() == [0.79, 0.75]
    assert len(reported_auc(table.iloc[:0])) == 0
