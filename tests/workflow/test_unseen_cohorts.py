"""Runs that leave a cohort out stand beside those that do not, and change nothing about them."""

import pytest
import yaml

from fedbrain.tables import PREDICTIONS, SPLITS, TRANSFER, read_table

CELL = "results/runs/ncc/frozen/simpleavg"


@pytest.fixture
def copy(study, tmp_path):
    return study.copy(tmp_path / "copy")


def test_a_run_without_a_cohort_tests_all_of_it(study):
    tables = {
        name: read_table(study.folder / CELL / f"{folder}/{name}.tsv", PREDICTIONS)
        for name, folder in (("predictions", "without-beta/seed-0"), ("predictions_validation", "without-beta/seed-0"))
    }
    splits = read_table(study.folder / "results/cohorts/splits.tsv", SPLITS)
    of_beta = tables["predictions"].query("cohort == 'beta'")
    assert set(of_beta["subject"]) == set(splits.loc[splits["cohort"] == "beta", "subject"])
    assert "beta" not in set(tables["predictions_validation"]["cohort"])
    whole = read_table(study.folder / CELL / "seed-0/predictions.tsv", PREDICTIONS)
    others = [table[table["cohort"] != "beta"]["subject"].tolist() for table in (tables["predictions"], whole)]
    assert others[0] == others[1]


def test_the_table_and_the_figure_of_unseen_cohorts(study):
    table = read_table(study.folder / "results/evaluation/transfer.tsv", TRANSFER)
    assert set(table["cohort"]) == {"beta"}
    auc = table[table["metric"] == "auc"].set_index(["tested", "model"])
    assert auc.loc[("all", "unseen"), "subjects"] == 6
    assert auc.loc[("test", "difference"), "value"] == pytest.approx(
        auc.loc[("test", "unseen"), "value"] - auc.loc[("test", "seen"), "value"]
    )
    assert (study.folder / "results/figures/transfer.svg").is_file()


def test_leaving_a_cohort_out_trains_what_is_new_and_nothing_else(copy):
    config = yaml.safe_load((copy.folder / "config.yaml").read_text())
    config["grid"][1]["leave_out"] = ["alpha"]
    copy.write_config(config)
    planned = copy.planned()
    assert planned["train_cell_without"] == 1
    assert not {"train_cell", "evaluate_cells", "split_subjects"} & set(planned)
    config["grid"][1]["leave_out"] = ["alpa"]
    copy.write_config(config)
    output = copy.snakemake("--dry-run", check=False)
    assert "grid.1.leave_out: there is no cohort 'alpa'; did you mean 'alpha'?" in output
