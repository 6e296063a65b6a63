"""A privacy audit that is asked for later trains shadow models and nothing else; a shadow that is lost is trained anew alone."""

from collections import Counter

import pytest
from small_study import CONFIG

from fedbrain.tables import MEMBERS, PRIVACY, read_table

FOLDER = "results/privacy/linear/frozen/fedavg/seed-0"
TABLE = "results/evaluation/privacy.tsv"


@pytest.fixture(scope="module")
def audited(study, tmp_path_factory):
    copy = study.copy(tmp_path_factory.mktemp("audited") / "checkout")
    privacy = {"cells": [["linear", "frozen", "fedavg"]], "shadows": 4}
    copy.write_config(CONFIG | {"evaluation": CONFIG["evaluation"] | {"privacy": privacy}})
    planned = copy.planned()
    copy.snakemake(TABLE)
    return copy, planned


def test_who_asks_for_no_audit_has_none_and_who_does_trains_nothing_again(study, audited):
    assert not study.planned()
    assert not (study.folder / "results/privacy").exists()
    _, planned = audited
    new = {"score_members": 5, "audit_privacy": 1, "plot_membership": 1}
    assert planned == Counter(new | {"study_page": 1})


def test_the_audit_has_every_training_and_test_scan_and_each_in_half_of_the_shadows(audited):
    study, _ = audited
    models = {path.stem: read_table(path, MEMBERS) for path in (study.folder / FOLDER).glob("*.tsv")}
    assert set(models) == {"released", *(f"shadow-{number}" for number in range(4))}
    assert not [path for path in (study.folder / FOLDER).iterdir() if path.is_dir()]  # what a shadow was trained in
    keys = ["cohort", "subject", "session"]
    scans = {name: table.sort_values(keys)[keys].astype(str).to_numpy().tolist() for name, table in models.items()}
    assert all(own == scans["released"] for own in scans.values())
    inside = sum(models[f"shadow-{number}"].sort_values(keys)["member"].to_numpy(int) for number in range(4))
    assert set(inside) == {2}
    table = read_table(study.folder / TABLE, PRIVACY)
    assert list(dict.fromkeys(table["client"])) == ["alpha", "beta", "gamma", "pooled"]
    rows = table[table["metric"] == "auc"].set_index(["client", "attack"])
    assert rows["value"].between(0, 1).all()
    assert rows.loc[("pooled", "lira"), "shadows"] == 4


def test_a_shadow_that_is_lost_is_trained_anew_alone(audited):
    study, _ = audited
    path = study.folder / FOLDER / "shadow-2.tsv"
    before = path.read_bytes()
    path.unlink()
    name = str(path.relative_to(study.folder))
    assert study.planned(name) == Counter(score_members=1)
    study.snakemake(name)
    assert path.read_bytes() == before
