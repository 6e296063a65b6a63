"""Runs that leave a cohort out stand beside those that do not, and change nothing about them."""

import pytest
import yaml

from fedbrain.tables import PREDICTIONS, SPLITS, TRANSFER, read_table

CELL = "results/runs/ncc/frozen/simpleavg"


@pytest.fixture(scope="module")
def left(study, tmp_path_factory):
    """The finished study, its class centres also without a cohort; and the jobs that this took."""
    copy = study.copy(tmp_path_factory.mktemp("left") / "copy")
    leave_out(copy, "beta")
    planned = copy.planned()
    copy.snakemake("results/figures/transfer.svg")
    return copy, planned


def leave_out(study, cohort):
    config = yaml.safe_load((study.folder / "config.yaml").read_text())
    (block,) = (block for block in config["grid"] if block["heads"] == ["ncc"])
    study.write_config(config | {"grid": [*config["grid"], block | {"leave_out": [cohort]}]})


def test_a_run_without_a_cohort_tests_all_of_it(left):
    study, _ = left
    tables = {
        name: read_table(study.folder / CELL / f"without-beta/seed-0/{name}.tsv", PREDICTIONS)
        for name in ("predictions", "predictions_validation")
    }
    splits = read_table(study.folder / "results/cohorts/splits.tsv", SPLITS)
    of_beta = tables["predictions"].query("cohort == 'beta'")
    assert set(of_beta["subject"]) == set(splits.loc[splits["cohort"] == "beta", "subject"])
    assert "beta" not in set(tables["predictions_validation"]["cohort"])
    whole = read_table(study.folder / CELL / "seed-0/predictions.tsv", PREDICTIONS)
    others = [table[table["cohort"] != "beta"]["subject"].tolist() for table in (tables["predictions"], whole)]
    assert others[0] == others[1]


def test_the_table_and_the_figure_of_unseen_cohorts(left):
    study, _ = left
    table = read_table(study.folder / "results/evaluation/transfer.tsv", TRANSFER)
    assert set(table["cohort"]) == {"beta"}
    auc = table[table["metric"] == "auc"].set_index(["tested", "model"])
    assert auc.loc[("all", "unseen"), "subjects"] == 6
    assert auc.loc[("test", "difference"), "value"] == pytest.approx(
        auc.loc[("test", "unseen"), "value"] - auc.loc[("test", "seen"), "value"]
    )
    assert (study.folder / "results/figures/transfer.svg").is_file()


def test_leaving_a_cohort_out_trains_what_is_new_and_nothing_else(left):
    _, planned = left
    jobs = {rule: planned[rule] for rule in ("train_cell_without", "evaluate_transfer", "plot_transfer")}
    assert set(jobs.values()) == {1}
    assert set(planned) - set(jobs) <= {"study_page"}


def test_a_cohort_that_is_not_there_is_told_at_the_start(study, tmp_path):
    copy = study.copy(tmp_path / "copy")
    leave_out(copy, "bta")
    output = copy.snakemake("--dry-run", check=False)
    assert "there is no cohort 'bta'; did you mean 'beta'?" in output
