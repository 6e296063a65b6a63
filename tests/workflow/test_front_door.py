"""What a user meets first: clear refusals before anything runs, and a clean workflow."""

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from small_study import CONFIG, fresh_checkout


@pytest.fixture
def checkout(root, tmp_path):
    return fresh_checkout(root, tmp_path / "checkout")


def test_the_shipped_study_is_ready_to_run(checkout):
    planned = checkout.planned()
    assert planned["make_phantoms"] > 0
    assert planned["train_cell"] > 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trainig": {}}, "unknown key 'trainig'; did you mean 'training'?"),
        ({"cohorts": {"alpha": {"table": "none.tsv"}}}, "cohort alpha: no scan table none.tsv"),
        ({"encoder": {"weights": "none.pth"}}, "put the published checkpoint sam_med3d_turbo.pth"),
    ],
)
def test_a_mistake_stops_before_anything_runs_and_says_the_mend(checkout, change, words):
    checkout.write_config(CONFIG | change)
    output = checkout.snakemake(check=False)
    assert words in output
    assert not (checkout.folder / "results/logs").exists()


def test_another_configfile_is_the_whole_study_and_not_merged_into_the_shipped_one(checkout):
    config = yaml.safe_load((checkout.folder / "config.yaml").read_text())
    config["cohorts"] = {"only": {"phantom": {"controls": 6, "cases": 6}}}
    config["grid"] = [block for block in config["grid"] if "leave_out" not in block]  # nobody would be left
    (checkout.folder / "mine.yaml").write_text(yaml.safe_dump(config))
    checkout.snakemake("--dry-run", "--configfile", "mine.yaml")
    assert list(json.loads((checkout.folder / "results/cohorts/index.json").read_text())) == ["only"]


def test_a_part_of_the_study_can_be_asked_for_without_a_report(checkout):
    config = CONFIG | {"cohorts": {"only": {"phantom": {"controls": 1, "cases": 1, "scanner": "grainy"}}}}
    checkout.write_config(config)
    output = checkout.snakemake("results/phantoms/only/shard-0.tsv")
    assert "asked for a part of the study only" in output
    table = pd.read_csv(checkout.folder / "results/phantoms/only/shard-0.tsv", sep="\t")
    assert all((checkout.folder / "results/phantoms/only" / path).is_file() for path in table["path"])


def test_who_looks_at_a_running_workflow_sees_the_study_it_was_started_with_and_changes_nothing(checkout):
    checkout.write_config(CONFIG | {"cohorts": {"one": {"phantom": {}}}})
    checkout.snakemake("--dry-run")
    index = checkout.folder / "results/cohorts/index.json"
    before = index.read_bytes()
    locks = checkout.folder / ".snakemake/locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.input.lock").touch()
    checkout.write_config(CONFIG | {"cohorts": {"two": {"phantom": {}}}})
    output = checkout.snakemake("--dry-run")
    assert "a workflow is running here" in output
    assert "results/volumes/one/0.tsv" in output
    assert index.read_bytes() == before
    (locks / "0.input.lock").unlink()
    assert "results/volumes/two/0.tsv" in checkout.snakemake("--dry-run")


def test_every_rule_has_log_benchmark_environment_and_an_explicit_gpu(root, config_schema):
    table = config_schema["properties"]["resources"]["properties"]["gpu"]["properties"]
    rules = {}
    for path in (root / "rules").glob("*.smk"):
        for block in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            rules[block.split(":")[0]] = block
    assert set(rules) == set(table)
    for name, block in rules.items():
        for part in ("log:", "benchmark:", "conda:", f'gpu=gpu("{name}")', "mem_mb=", "runtime=", "attempt", "code="):
            assert part in block, f"{name}: {part}"
        assert f"workflow_scripts/{name}.py" in block


def test_lint_finds_nothing(checkout):
    output = checkout.snakemake("--lint")
    assert "Congratulations" in output


def test_the_conda_environment_has_the_versions_of_the_package(root):
    import tomllib

    environment = yaml.safe_load((root / "envs/fedbrain.yaml").read_text())
    (pip,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    assert pip == tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]


def test_the_library_knows_no_snakemake_and_flower_stands_in_the_engine_only(root):
    for path in (root / "src").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"^\s*(import|from) snakemake", text, re.MULTILINE), path
        if re.search(r"^\s*(import|from) flwr", text, re.MULTILINE):
            assert path.parent.name == "federated", path


@pytest.mark.skipif(shutil.which("snakefmt") is None, reason="snakefmt is not installed")
def test_rules_are_formatted(root):
    files = [str(root / "Snakefile"), str(root / "rules")]
    assert subprocess.run([sys.executable, "-m", "snakefmt.snakefmt", "--check", *files], cwd=root).returncode == 0
