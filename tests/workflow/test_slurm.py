"""The workflow on a real Slurm: what each job asked for."""

import re

import pytest
import yaml
from one_node_slurm import missing

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

# Without DICOM folders, a fitted intensity, a harmonized cell, an export, cells that leave a cohort out, models of the
# clients' own, an audit, maps; other tests run them.
NOT_ASKED_FOR = {
    "audit_privacy",
    "compare_personal_models",
    "convert_dicom",
    "evaluate_transfer",
    "explain_cell",
    "export_derivatives",
    "fit_harmonization",
    "fit_intensity",
    "plot_explanation",
    "plot_membership",
    "plot_personalisation",
    "plot_transfer",
    "score_members",
    "share_intensity",
    "standardize_shard",
}


@pytest.fixture(scope="module")
def jobs(study, cluster):
    """Submitted jobs by rule."""
    result: dict[str, list[dict]] = {}
    for job in cluster.jobs():
        rule = re.match(r"rule_(.+?)(_wildcards_.*)?$", job["Comment"])[1]
        result.setdefault(rule, []).append(job)
    return result


def test_exactly_the_gpu_rules_asked_for_a_gpu(jobs, config_schema):
    table = config_schema["properties"]["resources"]["properties"]["gpu"]["properties"]
    expected = {rule: options["default"] for rule, options in table.items()}
    asked = {rule: {job.get("TresPerJob") for job in submitted} for rule, submitted in jobs.items()}
    # Every stage ran as a Slurm job of its own, but for those that this study does not ask for.
    assert set(expected) - set(asked) == NOT_ASKED_FOR
    assert set(asked) <= set(expected)
    for rule, gpus in asked.items():
        assert gpus == ({"gres:gpu:1"} if expected[rule] else {None}), rule


def test_all_jobs_completed(jobs):
    assert {job["JobState"] for submitted in jobs.values() for job in submitted} == {"COMPLETED"}


def test_memory_and_time_are_those_of_the_rules(jobs):
    for job in jobs["preprocess_shard"]:
        assert "mem=3500M" in job["ReqTRES"] if "ReqTRES" in job else job["MinMemoryNode"] == "3500M"
    for job in jobs["evaluate_cells"]:
        assert job["TimeLimit"] == "00:07:00"  # seven cells


def test_a_gpu_rule_without_a_gpu_says_that_it_runs_on_the_cpu(study):
    for log in (study.folder / "results/logs/embed_shard").glob("*.log"):
        assert "a GPU was asked for, but this machine shows none" in log.read_text()


def test_the_gpu_table_of_the_config_is_what_decides(study, tmp_path):
    copy = study.copy(tmp_path / "copy")
    config = yaml.safe_load((copy.folder / "config.yaml").read_text())
    config["resources"] = {"gpu": {"train_cell": 0, "evaluate_cells": 2}}
    copy.write_config(config)
    assert not copy.planned()  # resources run nothing again
    output = copy.snakemake("--dry-run", "--forceall")
    asked = set(re.findall(r"rule (\w+):.*?gpu=(\d+)", output, re.DOTALL))
    assert {("train_cell", "0"), ("evaluate_cells", "2"), ("embed_shard", "1"), ("split_subjects", "0")} <= asked
