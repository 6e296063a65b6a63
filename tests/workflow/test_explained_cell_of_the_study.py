"""Explanation maps of a cell with adapters: its model is put together again, maps, groups, tables and the figure are there."""

import nibabel
import numpy as np
import pytest
from small_study import CONFIG

from fedbrain.imaging.layout import SPACE
from fedbrain.tables import EXPLANATION, PREDICTIONS, RANDOMISATION, read_table

CELL = "linear/lora_qv/fedavg"
ASKED = {"cells": [CELL.split("/")], "methods": ["occlusion", "rollout"], "subjects": 1, "block": 64, "stride": 64}


def test_a_cell_with_adapters_is_explained_and_nothing_is_trained_for_it(study, tmp_path):
    copy = study.copy(tmp_path / "checkout")
    copy.write_config(CONFIG | {"evaluation": CONFIG["evaluation"] | {"explanation": ASKED}})
    figure = f"results/figures/explanation-{CELL.replace('/', '-')}.svg"
    planned = copy.planned(figure)
    assert dict(planned) == {"explain_cell": 1, "plot_explanation": 1}
    copy.snakemake(figure)

    folder = copy.folder / "results/explanation" / CELL
    table = read_table(folder / "explanation.tsv", EXPLANATION)
    assert sorted(table["method"]) == ["occlusion"] * 2 + ["rollout"] * 2
    assert sorted(table["label"]) == [0, 0, 1, 1]
    predictions = read_table(copy.folder / "results/runs" / CELL / "seed-0/predictions.tsv", PREDICTIONS)
    joined = table.merge(predictions, on=["cohort", "subject"], suffixes=("", "_predicted"))
    assert joined["score"].tolist() == joined["score_predicted"].tolist()
    # What the model says of the whole scan is what it had predicted.
    evidence = joined["evidence"].astype(float)
    assert (1 / (1 + np.exp(-evidence))).tolist() == pytest.approx(joined["score"].astype(float).tolist(), abs=1e-4)
    scrambled = read_table(folder / "randomisation.tsv", RANDOMISATION)
    assert set(scrambled["method"]) == {"occlusion", "rollout"}
    maps = sorted(folder.glob("*.nii.gz"))
    assert len(maps) == 6  # cases, controls and their difference by each method
    for path in maps:
        image = nibabel.load(path)
        assert SPACE in path.name
        assert image.shape == (128, 128, 128)
        assert np.isfinite(image.get_fdata()).all()
    assert (copy.folder / figure).stat().st_size > 5000
    assert not copy.planned(figure)
