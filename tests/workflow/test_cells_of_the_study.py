"""What the tuned cells and the references of the small study have left behind."""

import json

import pytest
from safetensors.numpy import load_file

from fedbrain.tables import EFFICIENCY, PERFORMANCE, PREDICTIONS, read_table

CUTS = {
    "linear/frozen/fedavg": ("output", "sam_med3d/output", 770),
    "linear/lora_qv/fedavg": ("block11", "sam_med3d/block11", 3072 * 8 + 770),
    "ncc/frozen/simpleavg": ("output", "sam_med3d/output", 0),
    "resnet18/full/fedavg": ("volume", "none/volume", 33_161_026),
}


@pytest.mark.parametrize("cell", CUTS)
def test_each_cell_is_trained_on_its_longest_frozen_prefix(study, cell):
    cut, folder, trained = CUTS[cell]
    summary = json.loads((study.folder / f"results/runs/{cell}/seed-0/summary.json").read_text())
    assert (summary["cut"], summary["parameters"]["trained"]) == (cut, trained)
    assert len(list((study.folder / "results/embeddings" / folder).rglob("*.safetensors"))) == 4
    predictions = read_table(study.folder / f"results/runs/{cell}/seed-0/predictions.tsv", PREDICTIONS)
    assert predictions["score"].between(0, 1).all()


def test_all_cells_are_tested_on_the_same_scans(study):
    tables = [
        read_table(path, PREDICTIONS) for path in (study.folder / "results/runs").glob("*/*/*/seed-0/predictions.tsv")
    ]
    assert len(tables) == 7
    rows = {tuple(map(tuple, table[["cohort", "subject", "label"]].to_numpy().tolist())) for table in tables}
    assert len(rows) == 1


def test_adapters_alone_are_written(study):
    tensors = load_file(study.folder / "results/runs/linear/lora_qv/fedavg/seed-0/model.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"encoder", "head"}
    assert all("lora_" in name for name in tensors if name.startswith("encoder"))


def test_performance_and_cost_have_a_row_for_every_cell(study):
    performance = read_table(study.folder / "results/evaluation/performance.tsv", PERFORMANCE)
    efficiency = read_table(study.folder / "results/evaluation/efficiency.tsv", EFFICIENCY)
    cells = ["/".join(row) for row in efficiency[["head", "tuning", "aggregation"]].to_numpy()]
    assert set(CUTS) <= set(cells)
    assert len(cells) == 7
    evaluated = {"/".join(row) for row in performance[["head", "tuning", "aggregation"]].to_numpy()}
    assert set(cells) == evaluated - {"site_only/none/none"}
    rows = efficiency.assign(cell=cells).set_index("cell")
    assert rows.loc["resnet18/full/fedavg", "bytes_up"] > 4 * 33_161_026  # its running statistics travel, too
    assert rows.loc["linear/frozen/fedavg", "bytes_up"] == 4 * 770
    assert rows.loc["linear/frozen/local", "bytes_up"] == 0
    assert round(rows.loc["linear/lora_qv/fedavg", "gmacs_reference"]) == 184
