"""The split's parameter for dropped scans changes when the set of dropped scans does, and not with the threshold as such."""

import json

import pandas as pd
import pytest

from fedbrain.cohorts import index
from fedbrain.cohorts.splits import digest_of_dropped
from fedbrain.imaging import outliers
from fedbrain.tables import VOLUMES, write_table

INDEX = {"a": {"shards": {"0": 4, "1": 4}}, "b": {"shards": {"0": 1}}}
DICE = {"a": [0.96, 0.95, 0.90, 0.96, 0.97, 0.955, 0.965, 0.85], "b": [0.80]}


@pytest.fixture
def study(tmp_path):
    for cohort, shards in INDEX.items():
        scans = pd.DataFrame({"scan": [f"{cohort}{n}" for n in range(len(DICE[cohort]))], "mask_dice": DICE[cohort]})
        scans = scans.assign(status="ok").reindex(columns=[*VOLUMES, "mask_dice"])
        for shard in shards["shards"]:
            write_table(scans.iloc[int(shard) * 4 :][:4], tmp_path / cohort / f"{shard}.tsv")

    def parameter(drop="limits", least=0.93, outlier_z=3.5, volumes=tmp_path):
        settings = {"outlier_z": outlier_z, "limits": {"mask_dice": {"min": least}}, "drop": drop}
        return index.dropping({"quality": settings}, INDEX, volumes=volumes, record=tmp_path / "splits.json")

    def split(parameter, dropped):
        """What a run of split_subjects leaves behind."""
        table = pd.DataFrame(dropped, columns=["cohort", "scan"])
        made = {"dropping": parameter, "dropped": digest_of_dropped(table)}
        (tmp_path / "splits.json").write_text(json.dumps({"parameters": made}))

    return parameter, split


DROPPED_BELOW = {0.93: [("a", "a2"), ("a", "a7"), ("b", "b0")], 0.86: [("a", "a7"), ("b", "b0")], 0.5: []}


def test_only_another_set_of_dropped_scans_is_another_parameter(study):
    parameter, split = study
    first = parameter()
    split(first, DROPPED_BELOW[0.93])
    assert parameter() == parameter(least=0.92) == parameter(least=0.945) == first
    assert parameter(outlier_z=9) == first
    assert parameter(least=0.86) != first
    assert parameter(drop="none") == parameter(least=0.5) != first
    # Looking (a dry run) leaves nothing behind: back to the first threshold is back to the first parameter.
    assert parameter() == first


def test_the_parameter_of_the_first_run_stays_when_the_tables_are_there(study, tmp_path):
    parameter, split = study
    first = parameter(volumes=tmp_path / "nothing yet")
    split(first, DROPPED_BELOW[0.93])
    assert parameter() == first
    assert parameter(least=0.86) != first
    split(parameter(least=0.86), DROPPED_BELOW[0.86])
    assert parameter(least=0.86) == parameter(least=0.87) != first


def test_dropping_can_be_taken_back_after_a_first_run_that_found_no_tables(study, tmp_path):
    parameter, split = study
    first = parameter(volumes=tmp_path / "nothing yet")  # of no scans, though the run then drops some
    split(first, DROPPED_BELOW[0.93])
    second = parameter(drop="none")
    assert second == parameter(least=0.5) != first
    split(second, [])
    assert parameter(drop="none") == second
    assert parameter() not in (first, second)


def test_where_nothing_is_dropped_no_table_is_read(study, monkeypatch):
    parameter, split = study
    split(parameter(drop="none"), [])
    monkeypatch.setattr(outliers, "read_shards", None)
    assert parameter(drop="none") == parameter(drop="none", outlier_z=1)


def test_the_digest_of_the_dropped_is_of_the_set():
    one = pd.DataFrame({"cohort": ["a", "b"], "scan": ["x", "y"], "reason": ["this", "that"]})
    assert digest_of_dropped(one) == digest_of_dropped(one[::-1].assign(reason="other"))
    assert digest_of_dropped(one) != digest_of_dropped(one[:1]) != digest_of_dropped(one[1:])
