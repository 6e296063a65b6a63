"""What cannot be explained is told at the start; what a job of explanation asks for follows its work."""

import copy

import pytest

from fedbrain.errors import StudyError
from fedbrain.study.config import Cell, checked, explained_cells
from fedbrain.study.resources import explain_minutes

CONFIG = {
    "title": "t",
    "cohorts": {"a": {"table": "a.tsv"}, "b": {"bids": "b"}},
    "labels": {"CN": 0, "AD": 1},
    "encoder": {"weights": "random"},
    "grid": [
        {"heads": ["linear"], "aggregations": ["fedavg", "local"]},
        {"heads": ["resnet18"], "tunings": ["full"], "aggregations": ["fedavg"]},
    ],
}


def explained(schema, encoder="sam_med3d", **options):
    config = copy.deepcopy(CONFIG)
    config["encoder"]["name"] = encoder
    config["evaluation"] = {"explanation": options}
    return checked(config, schema)


def test_without_a_word_nothing_is_explained(config_schema):
    assert explained_cells(checked(CONFIG, config_schema)) == []


def test_cells_of_the_grid_are_explained(config_schema):
    study = explained(config_schema, cells=[["linear", "frozen", "local"]])
    assert explained_cells(study) == [Cell("linear", "frozen", "local")]
    assert study["evaluation"]["explanation"]["methods"] == ["integrated_gradients", "rollout"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"cells": [["linear", "frozen", "fedavgg"]]},
            "grid has no cell linear/frozen/fedavgg; did you mean linear/frozen/fedavg",
        ),
        ({"cells": [["resnet18", "full", "fedavg"]]}, "resnet18/full/fedavg has no attention to roll out"),
        (
            {"cells": [["linear", "frozen", "local"]], "encoder": "brainiac"},
            "integrated gradients are zero; take occlusion",
        ),
        ({"block": 16}, "stride 32 leaves gaps between blocks of 16"),
        ({"method": ["rollout"]}, "unknown key 'method'; did you mean 'methods'"),
        ({"methods": ["gradcam"]}, "gradcam"),
    ],
)
def test_what_shows_nothing_is_refused_before_anything_runs(config_schema, options, message):
    with pytest.raises(StudyError, match=message):
        explained(config_schema, **options)


def test_a_network_without_attention_can_be_occluded(config_schema):
    explained(config_schema, cells=[["resnet18", "full", "fedavg"]], methods=["occlusion", "integrated_gradients"])
    explained(config_schema, "brainiac", cells=[["linear", "frozen", "local"]], methods=["occlusion", "rollout"])


def test_time_follows_scans_steps_blocks_and_attempts(config_schema):
    options = explained(config_schema)["evaluation"]["explanation"]

    def minutes(scans=8, attempt=1, gpu=False, **changed):
        return explain_minutes(options | changed, scans, gpu=gpu, threads=1, attempt=attempt) - 10 * attempt

    assert minutes(24) == pytest.approx(2 * minutes(8), abs=2)  # 8 maps are made again with scrambled weights
    assert minutes(8, steps=32) > 1.9 * minutes(8)
    assert minutes(8, methods=["occlusion"], stride=16) > 7 * minutes(8, methods=["occlusion"])
    assert minutes(8, attempt=2) == pytest.approx(2 * minutes(8), abs=2)
    assert minutes(8, gpu=True) < minutes(8) / 10
