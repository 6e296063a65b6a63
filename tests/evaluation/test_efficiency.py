import pandas as pd
import pytest

from fedbrain.evaluation.efficiency import efficiency
from fedbrain.tables import EFFICIENCY, ROUNDS

CELL = ("linear", "lora", "fedavg")


def a_run(seconds, bytes_up=(100, 100, 100, 100), peak=5, cell=CELL):
    rounds = pd.DataFrame(
        {
            "round": [1, 1, 2, 2],
            "client": ["A", "B", "A", "B"],
            "scans": [10, 30, 10, 30],
            "bytes_down": [100, 100, 200, 200],  # the last model goes down once more
            "bytes_up": bytes_up,
            "seconds": seconds,
            "peak_memory": [3, 8, 4, 7],
        }
    )
    summary = {
        "cell": dict(zip(("head", "tuning", "aggregation"), cell)),
        "parameters": {"trained": 25, "full": 100, "sent": 20},
        "operations": {"volume": 52e9, "cut": 10e9, "reference": 184e9},
        "training": {"local_epochs": 2},
        "peak_memory": peak,
        "seconds": 50.0,
        "device": "cpu",
    }
    return summary, rounds.reindex(columns=list(ROUNDS)).astype(ROUNDS)


def test_a_row_is_what_one_computes_by_hand():
    table = efficiency([CELL], [a_run([1, 3, 1, 3]), a_run([2, 6, 2, 6], peak=9)])
    assert dict(table.dtypes.astype(str)) == {
        name: str(pd.Series(dtype=kind).dtype) for name, kind in EFFICIENCY.items()
    }
    (row,) = table.to_dict("records")
    assert (row["seeds"], row["trained"], row["trained_share"], row["full_bytes"]) == (2, 25, 0.25, 400)
    assert (row["bytes_down"], row["bytes_up"]) == (150, 100)
    assert row["bytes_run"] == 100 + 200 + 2 * 100  # a client's two messages each way, the same in both seeds
    assert (row["gmacs"], row["gmacs_step"], row["gmacs_reference"]) == (52, 10, 184)
    assert (row["sent"], row["sent_share"], row["rounds"]) == (20, 0.2, 2)
    assert row["bytes_share"] == 500 / (2 * 400 * 2)  # both ways and rounds, of all parameters as float32
    assert (row["peak_memory"], row["peak_memory_client"]) == (9, 8)
    assert row["seconds_client"] == 24 / 8
    assert row["seconds_round"] == pytest.approx((4 + 4 + 8 + 8) / 4)
    assert row["seconds_scan"] == pytest.approx(24 / (4 * 40 * 2))  # four rounds of 40 scans, two epochs each
    assert row["seconds_run"] == 50


def test_cells_keep_their_order_and_nothing_trained_is_nothing_divided():
    other = ("ncc", "frozen", "simpleavg")
    summary, rounds = a_run([1, 1, 1, 1], cell=other)
    summary["parameters"] = {"trained": 0, "full": 0, "sent": 0}
    summary["operations"] = {"volume": 1e9, "cut": 0, "reference": 0}
    table = efficiency([other, CELL], [a_run([1, 1, 1, 1]), (summary, rounds)])
    assert table["head"].tolist() == ["ncc", "linear"]
    assert table["trained_share"].tolist() == [0, 0.25]
    assert table["sent_share"].tolist() == [0, 0.2]
    assert table["bytes_share"].isna().tolist() == [True, False]
    assert table["gmacs_reference"].isna().tolist() == [True, False]


def test_who_rested_and_was_not_asked_has_no_part_in_the_seconds_of_a_client():
    summary, rounds = a_run([1, None, 3, 2])
    rounds.loc[1, ["scans", "peak_memory"]] = [0, pd.NA]
    (row,) = efficiency([CELL], [(summary, rounds)]).to_dict("records")
    assert row["seconds_client"] == 2
    assert row["peak_memory_client"] == 7
