"""The figure of what travels: what its marks stand for."""

import numpy as np
import pandas as pd
import pytest

from fedbrain.figures.communication import communication
from fedbrain.tables import EFFICIENCY


def table(*rows):
    """Rows of (head, tuning, aggregation, sent, bytes down, bytes up, bytes of the run) of a model of 1000 parameters and 5 rounds."""
    columns = ["head", "tuning", "aggregation", "sent", "bytes_down", "bytes_up", "bytes_run"]
    frame = pd.DataFrame(rows, columns=columns).assign(full_bytes=4000.0, rounds=5.0, seeds=2)
    frame["sent_share"] = frame["sent"] / 1000
    return frame.reindex(columns=list(EFFICIENCY)).astype(EFFICIENCY)


CELLS = table(
    ("linear", "lora", "fedavg", 100, 480.0, 400.0, 4400.0),
    ("linear", "lora", "scaffold", 100, 880.0, 800.0, 8400.0),
    ("linear", "lora", "local", 0, 0.0, 0.0, 0.0),
    ("ncc", "frozen", "simpleavg", 0, 40.0, 20.0, 60.0),
)


def marks(axes, gid):
    """Values of the marks of one kind by the label of their row."""
    left = axes.figure.axes[0]  # the rows of both are named here
    labels = dict(zip(left.get_yticks(), (label.get_text() for label in left.get_yticklabels())))
    lines = [line for line in axes.lines if line.get_gid() == gid]
    return {labels[round(line.get_ydata()[0])]: line.get_xdata()[0] for line in lines}


def test_marks_are_shares_of_the_model_and_bytes_of_the_run():
    share, run = communication(CELLS).axes
    assert marks(share, "count") == {"FedAvg": 0.1, "SCAFFOLD": 0.1}  # of a method without parameters there is none
    assert marks(share, "down") == {"FedAvg": 0.12, "SCAFFOLD": 0.22, "SimpleAvg": 0.01}
    assert marks(share, "up") == {"FedAvg": 0.1, "SCAFFOLD": 0.2, "SimpleAvg": 0.005}
    assert marks(run, "count") == {"FedAvg": 4 * 100 * 5, "SCAFFOLD": 4 * 100 * 5}
    assert marks(run, "both") == {"FedAvg": 4400, "SCAFFOLD": 8400, "SimpleAvg": 60}
    texts = [text.get_text() for text in run.texts]
    assert texts[:3] == ["2.20 ×", "4.20 ×", "no parameters"]
    assert {axes.get_xscale() for axes in (share, run)} == {"log"}


def test_rows_stand_in_blocks_and_who_sends_nothing_is_named():
    figure = communication(CELLS)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["Linear, LoRA", "FedAvg", "SCAFFOLD", "NCC, frozen encoder", "SimpleAvg"]
    note = figure.get_supxlabel()
    assert "left out: Local only" in note
    assert "2 seeds" in note


@pytest.mark.parametrize("rows", [[0], [3], [0, 1, 2, 3]])
def test_all_marks_lie_within_axes_of_two_decades_at_least(rows):
    for axes in communication(CELLS.iloc[rows]).axes:
        low, high = axes.get_xlim()
        assert np.log10(high / low) >= 2 - 1e-9
        values = [line.get_xdata()[0] for line in axes.lines if line.get_gid()]
        assert values
        assert all(low < value < high for value in values)


def test_a_study_that_sends_nothing_says_so():
    figure = communication(CELLS[CELLS["aggregation"] == "local"])
    assert figure.axes[0].texts[0].get_text() == "No cell sends anything."
