"""Site effects of every study, and a tuning whose embeddings are harmonized: fitted once, refused where a client is too small."""

import pytest
import yaml

from fedbrain.tables import HARMONIZATION, PREDICTIONS, SITE_EFFECTS, read_table


@pytest.fixture
def copy(study, tmp_path):
    """The finished study, its config with one more cell."""
    copy = study.copy(tmp_path / "copy")
    config = yaml.safe_load((copy.folder / "config.yaml").read_text())
    config["tuning"]["combat"] = {"kind": "frozen", "harmonization": "combat", "covariates": ["age"]}
    config["grid"].append({"heads": ["linear"], "tunings": ["combat"], "aggregations": ["fedavg"]})
    copy.write_config(config)
    return copy


def test_how_well_the_cohort_can_be_told_is_a_table_of_every_study(study):
    told = read_table(study.folder / "results/site_effects/sam_med3d/cohort_told.tsv", SITE_EFFECTS)
    assert set(told["features"]) == {"mean", "spread", "quality", "age and sex"}
    assert set(told["harmonization"]) == {"none"}
    mine = told[(told["features"] == "mean") & (told["label"] == "all")]
    assert set(mine["cohort"]) == {"all", "alpha", "beta", "gamma"}
    assert mine["value"].between(0, 1).all()
    assert mine.loc[mine["metric"] == "balanced_accuracy", "chance"].item() == pytest.approx(1 / 3)


def test_a_harmonized_tuning_trains_its_cells_only_and_names_a_client_that_is_too_small(copy):
    planned = copy.planned()
    assert (planned["train_cell"], planned["fit_harmonization"], planned["measure_site_effects"]) == (1, 1, 1)
    assert not {"embed_shard", "split_subjects", "preprocess_shard"} & set(planned)
    output = copy.snakemake("results/harmonization/combat.tsv", check=False)
    assert "Error in rule fit_harmonization" in output
    log = (copy.folder / "results/logs/fit_harmonization/combat.log").read_text()
    assert "training subjects, and ComBat needs 3 of every client" in log


def test_embeddings_are_harmonized_before_a_cell_is_trained(copy):
    config = yaml.safe_load((copy.folder / "config.yaml").read_text())
    config["splits"]["validation"] = 0  # so that every client has three subjects to train on
    copy.write_config(config)
    run = "results/runs/linear/combat/fedavg/seed-0"
    copy.snakemake(f"{run}/summary.json", "results/site_effects/sam_med3d/cohort_told.tsv")
    clients = read_table(copy.folder / "results/harmonization/combat.tsv", HARMONIZATION)
    assert set(clients["client"]) == {"alpha", "beta", "gamma"}
    assert (clients["bytes_up"] == 8 * (1 + 384 + 1 + 384 + 1 + 384)).all()
    summary = yaml.safe_load((copy.folder / run / "summary.json").read_text())
    assert summary["harmonization"]
    assert len(read_table(copy.folder / run / "predictions.tsv", PREDICTIONS)) > 3
    told = read_table(copy.folder / "results/site_effects/sam_med3d/cohort_told.tsv", SITE_EFFECTS)
    assert set(told["harmonization"]) == {"none", "combat"}
    assert set(told.loc[told["harmonization"] == "combat", "side"]) == {"held out"}
