"""What the schema cannot check of the evaluation's settings is told before anything runs."""

import pytest

from fedbrain.errors import StudyError
from fedbrain.evaluation import baseline
from fedbrain.evaluation.settings import BASELINE, audited_cells, reference_cell, rising_ages

CELLS = [("linear", "frozen", "fedavg"), ("conv_s", "lora", "local")]


def test_a_reference_is_a_cell_of_the_grid_or_the_baseline_or_none():
    assert reference_cell(None, CELLS) is None
    assert reference_cell(["conv_s", "lora", "local"], CELLS) == ["conv_s", "lora", "local"]
    assert baseline.CELL == BASELINE
    assert reference_cell(BASELINE, CELLS) == list(BASELINE)


def test_a_reference_that_is_not_run_is_told_with_the_nearest_cell():
    with pytest.raises(
        StudyError, match="evaluation.comparisons.reference.*linear/frozen/fedavgg.*did you mean linear/f"
    ):
        reference_cell(["linear", "frozen", "fedavgg"], CELLS)


@pytest.mark.parametrize("edges", [[75, 65], [65, 65], []])
def test_age_edges_rise(edges):
    with pytest.raises(StudyError, match="age_edges"):
        rising_ages(edges)
    assert rising_ages([60, 70.5]) == [60, 70.5]


def test_audited_cells_are_of_the_grid_and_each_counts_once():
    assert audited_cells([], CELLS) == []
    assert audited_cells([CELLS[1], CELLS[0], CELLS[1]], iter(CELLS)) == [list(CELLS[1]), list(CELLS[0])]
    with pytest.raises(StudyError, match="evaluation.privacy.cells.*did you mean linear/frozen/fedavg"):
        audited_cells([["linear", "frozen", "fedavgg"]], CELLS)
