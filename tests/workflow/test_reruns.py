"""Jobs run again when, and only when, something that they depend on has other content."""

import os
import shutil
from collections import Counter

import pandas as pd
import pytest
import yaml
from small_study import fresh_checkout

from fedbrain.cohorts.index import shard_of
from fedbrain.cohorts.intake import scan_id
from fedbrain.cohorts.phantom import plan_cohort, write_cohort
from fedbrain.tables import VOLUMES, read_table


@pytest.fixture
def copy(study, tmp_path):
    return study.copy(tmp_path / "copy")


def every_file(folder):
    return [path for path in folder.rglob("*") if path.is_file() and ".snakemake" not in path.parts]


def config_of(study):
    return yaml.safe_load((study.folder / "config.yaml").read_text())


def test_a_finished_study_has_nothing_to_do(study):
    assert not study.planned()


def test_touching_every_file_runs_nothing(copy):
    for path in every_file(copy.folder):
        os.utime(path)
    assert not copy.planned()


def test_a_fresh_clone_with_the_results_copied_in_runs_nothing(copy, root, tmp_path):
    clone = fresh_checkout(root, tmp_path / "clone")
    shutil.copyfile(copy.folder / "config.yaml", clone.folder / "config.yaml")
    for name in ("results", "data"):
        shutil.copytree(copy.folder / name, clone.folder / name, copy_function=shutil.copyfile, dirs_exist_ok=True)
    assert not clone.planned()


def test_editing_a_figures_module_draws_that_figure_and_the_page_and_nothing_else(copy):
    with (copy.folder / "src/fedbrain/figures/auc_by_head.py").open("a") as file:
        file.write("# edited\n")
    assert copy.planned() == Counter(plot_auc_by_head=1, study_page=1)
    before = (copy.folder / "results/report.html").stat().st_mtime_ns
    copy.snakemake()
    assert (copy.folder / "results/report.html").stat().st_mtime_ns > before  # the report is written anew
    assert not copy.planned()


def test_editing_an_aggregation_rule_trains_its_cells_only(copy):
    with (copy.folder / "src/fedbrain/federated/aggregation/fedce.py").open("a") as file:
        file.write("# edited\n")
    planned = copy.planned()
    assert planned["train_cell"] == 2
    assert not {"preprocess_shard", "embed_shard", "split_subjects", "plot_intensity_profiles"} & set(planned)


def test_a_new_line_in_the_registry_runs_nothing(copy):
    path = copy.folder / "src/fedbrain/registry.py"
    path.write_text(path.read_text().replace('    "head": {\n', '    "head": {\n        "mlp": "elsewhere:MLP",\n'))
    assert not copy.planned()


def test_a_new_aggregation_trains_its_cells_only(copy):
    config = config_of(copy)
    config["grid"][0]["aggregations"].append("simpleavg")
    copy.write_config(config)
    planned = copy.planned()
    assert planned["train_cell"] == 2
    assert not {"preprocess_shard", "embed_shard", "split_subjects", "make_phantoms"} & set(planned)


def test_the_order_of_keys_in_the_config_means_nothing_where_it_means_nothing(copy):
    config = config_of(copy)
    config["training"] = dict(reversed(config["training"].items()))
    config["evaluation"] = dict(reversed(config["evaluation"].items()))
    copy.write_config(dict(reversed(config.items())))
    assert not copy.planned()


def test_training_options_of_one_head_train_that_head(copy):
    config = config_of(copy)
    config["training"]["heads"] = {"conv_s": {"learning_rate": 0.0001}}
    copy.write_config(config)
    assert copy.planned()["train_cell"] == 1


def test_editing_the_adapters_code_trains_the_lora_cell_only(copy):
    with (copy.folder / "src/fedbrain/models/adapters.py").open("a") as file:
        file.write("# edited\n")
    planned = copy.planned()
    assert planned["train_cell"] == 1
    assert "embed_shard" not in planned


def test_another_rank_trains_the_lora_cell_and_other_blocks_keep_other_tokens_too(copy):
    config = config_of(copy)
    config["tuning"]["lora_qv"]["rank"] = 2
    copy.write_config(config)
    planned = copy.planned()
    assert planned["train_cell"] == 1
    assert "embed_shard" not in planned
    config["tuning"]["lora_qv"]["blocks"] = [10]
    copy.write_config(config)
    planned = copy.planned()
    assert planned["train_cell"] == 1
    assert planned["embed_shard"] == 4  # one a shard, for the tokens that enter block 10


def test_a_better_note_about_an_encoder_writes_the_page_only(copy):
    path = copy.folder / "src/fedbrain/models/cards.py"
    path.write_text(path.read_text().replace("Trained on segmentation masks.", "It was trained on segmentation masks."))
    assert copy.planned() == Counter(study_page=1)


def test_the_data_set_that_a_cohort_comes_from_writes_the_page_only(copy):
    config = config_of(copy)
    config["cohorts"]["alpha"]["dataset"] = "ADNI"
    copy.write_config(config)
    assert copy.planned() == Counter(study_page=1)


def test_a_changed_scan_runs_its_shard_and_within_it_that_scan_alone(copy):
    options = {"controls": 5, "cases": 5, "others": 1, "scanner": "crisp"}
    row = plan_cohort("alpha", options, 1).query("diagnosis == 'AD'").iloc[[0]]
    path = copy.folder / "data/alpha" / row["path"].iloc[0]
    path.unlink()
    write_cohort("alpha", {**options, "scanner": "fatsat"}, 1, copy.folder / "data/alpha", rows=row)
    planned = copy.planned()
    assert planned["preprocess_shard"] == 1
    assert planned["embed_shard"] == 3  # the embedding, the tokens for LoRA, the volume for ResNet18
    stamps = {path: path.stat().st_mtime_ns for path in (copy.folder / "results/volumes").rglob("*.nii.gz")}
    copy.snakemake("--until", "embed_shard", "split_subjects")
    written = {path.name.split("_space")[0] for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert written == {scan_id(row["subject"].iloc[0], row["session"].iloc[0])}
    home = shard_of(row["subject"].iloc[0], 2)
    table = read_table(copy.folder / f"results/volumes/alpha/{home}.tsv", VOLUMES)
    assert set(table.query("status == 'ok' and reused == 0")["scan"]) == written
    for cut in ("sam_med3d-output", "sam_med3d-block11", "none-volume"):
        log = (copy.folder / f"results/logs/embed_shard/{cut}-alpha-{home}.log").read_text()
        scans = len(table.query("status == 'ok'"))
        assert f"{scans} scans, {scans - 1} kept from before, 1 to compute" in log


def test_a_new_scan_runs_one_shard(copy):
    path = copy.folder / "data/alpha/scans.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    shutil.copyfile(copy.folder / "data/alpha" / table["path"].iloc[0], copy.folder / "data/alpha/new.nii.gz")
    row = {
        "subject": "new",
        "session": "n/a",
        "path": "new.nii.gz",
        "diagnosis": "CN",
        "age": "70",
        "sex": "F",
        "site": "x",
    }
    pd.concat([table, pd.DataFrame([row])]).to_csv(path, sep="\t", index=False)
    planned = copy.planned()
    assert (planned["preprocess_shard"], planned["embed_shard"]) == (1, 3)
    assert "make_phantoms" not in planned


def test_a_new_phantom_runs_one_shard(copy):
    config = config_of(copy)
    config["cohorts"]["gamma"]["phantom"]["controls"] += 1
    config["cohorts"]["gamma"]["shards"] = 1
    copy.write_config(config)
    planned = copy.planned()
    assert planned["make_phantoms"] == planned["preprocess_shard"] == 1
    before = {path: path.stat().st_mtime_ns for path in (copy.folder / "results/phantoms").rglob("*.nii.gz")}
    copy.snakemake("--until", "make_phantoms")
    after = {path: path.stat().st_mtime_ns for path in (copy.folder / "results/phantoms").rglob("*.nii.gz")}
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()


def test_a_changed_age_runs_no_preprocessing(copy):
    path = copy.folder / "data/alpha/scans.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    table.loc[0, "age"] = "99"
    table.to_csv(path, sep="\t", index=False)
    assert not {"preprocess_shard", "embed_shard", "make_phantoms"} & set(copy.planned())
