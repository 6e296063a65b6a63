"""A small sibling of the demo: a checkout of its own, its data and its config.

Three clients of each kind of source: a scan table (with a scan that is broken and a diagnosis that is not asked for), a
BIDS folder, and a phantom cohort that has controls only.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import yaml

from fedbrain.cohorts.phantom import plan_cohort, write_cohort

PARTS = ("Snakefile", "config.yaml", "rules", "profiles", "slurm", "envs", "workflow_scripts", "src", "pyproject.toml")
CONFIG = {
    "title": "Small study",
    "seed": 7,
    "cohorts": {
        "alpha": {"table": "data/alpha/scans.tsv", "shards": 2},
        "beta": {"bids": "data/beta", "diagnosis_column": "dx", "labels": {"HC": 0, "DEM": 1}},
        "gamma": {"phantom": {"controls": 4, "cases": 0, "scanner": "grainy"}},
    },
    "labels": {"CN": 0, "AD": 1},
    "class_names": ["control", "dementia"],
    "splits": {"validation": 0.25, "test": 0.35},
    "encoder": {"weights": "random"},
    "grid": [
        {"heads": ["linear"], "aggregations": ["fedavg", "fedce", "local"], "seeds": [0, 1]},
        {"heads": ["conv_s"], "aggregations": ["rate_my_lora"]},
        {"heads": ["linear"], "tunings": ["lora_qv"], "aggregations": ["fedavg"]},
        {"heads": ["ncc"], "aggregations": ["simpleavg"]},
        {"heads": ["resnet18"], "tunings": ["full"], "aggregations": ["fedavg"]},
    ],
    "head": {"resnet18": {"downsample": 4}},
    "tuning": {"lora_qv": {"kind": "lora", "blocks": 1, "targets": ["q", "v"]}},
    "training": {"rounds": 2, "batch_size": 4},
    "evaluation": {"resamples": 500},
}


class Study:
    """A checkout with data and, after ``run``, results."""

    def __init__(self, folder: Path, environment: dict | None = None):
        self.folder = folder
        # The checkout's own library, not the installed one: its modules are what the rules declare as their code.
        self.environment = (environment or dict(os.environ)) | {"PYTHONPATH": str(folder / "src")}

    def snakemake(self, *arguments: str, check: bool = True, timeout: int = 1500) -> str:
        """Runs snakemake in the checkout; returns what it printed."""
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        output = done.stdout + done.stderr
        assert not check or done.returncode == 0, output[-6000:]
        return output

    def planned(self, *arguments: str) -> Counter:
        """The jobs that a run would execute, by rule; empty if there is nothing to be done."""
        output = self.snakemake("--dry-run", *arguments)
        if "Nothing to be done" in output:
            return Counter()
        table = output[output.index("Job stats:") :].split("\n\n")[0]
        jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}
        return Counter({rule: count for rule, count in jobs.items() if rule not in ("total", "all")})

    def write_config(self, config: dict) -> None:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def copy(self, folder: Path) -> "Study":
        """The same checkout, data and results elsewhere, with the same time stamps."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Study(folder)


def fresh_checkout(root: Path, folder: Path) -> Study:
    """The project's files as a clone would lay them down: with the time stamps of now."""
    folder.mkdir(parents=True)
    for part in PARTS:
        source = root / part
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, folder / part, copy_function=shutil.copyfile, ignore=ignore)
        else:
            shutil.copyfile(source, folder / part)
    (folder / "results" / ".snakemake").mkdir(parents=True)
    (folder / ".snakemake").symlink_to("results/.snakemake")
    return Study(folder)


def write_data(folder: Path) -> None:
    """Ordinary NIfTI files with a scan table, and a BIDS folder."""
    options = {"controls": 5, "cases": 5, "others": 1, "scanner": "crisp"}
    plan = plan_cohort("alpha", options, 1)
    write_cohort("alpha", options, 1, folder / "alpha", rows=plan[plan["diagnosis"] != "MCI"])
    for path in plan.loc[plan["diagnosis"] == "MCI", "path"]:
        (folder / "alpha" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "alpha" / path).write_bytes(b"never read: the study asks for no such diagnosis")
    whole = (folder / "alpha" / plan["path"].iloc[0]).read_bytes()
    (folder / "alpha" / "broken.nii.gz").write_bytes(whole[: len(whole) // 2])
    broken = {"subject": "broken", "path": "broken.nii.gz", "diagnosis": "CN", "age": 70.0, "sex": "F", "site": "x"}
    table = pd.concat([plan, pd.DataFrame([broken])])
    table.to_csv(folder / "alpha" / "scans.tsv", sep="\t", index=False, na_rep="n/a")

    options = {"controls": 3, "cases": 3, "scanner": "shaded"}
    plan = plan_cohort("beta", options, 2)
    write_cohort("beta", options, 2, folder / "beta", rows=plan)
    people = plan.drop_duplicates("subject")
    people = people.assign(
        participant_id="sub-" + people["subject"], dx=people["diagnosis"].map({"CN": "HC", "AD": "DEM"})
    )
    people[["participant_id", "age", "sex", "dx"]].to_csv(folder / "beta" / "participants.tsv", sep="\t", index=False)
