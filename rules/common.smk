# What all stages share: the checked config, the index of scans, tables of work, and what a job asks of the machine.

import glob
import json
import os
import subprocess
import sys
from pathlib import Path

from fedbrain import registry
from fedbrain.cohorts import index as scan_index
from fedbrain.study import code as study_code
from fedbrain.study import config as study
from fedbrain.study import resources as work


def beside(*parts):
    """A path of the checkout as seen from the working folder, the same on every machine."""
    return os.path.relpath(os.path.join(workflow.basedir, *parts))


def say(text):
    """A line for the person who started the workflow."""
    print(f"fedbrain: {text}", file=sys.stderr)


RUNNING = any(glob.iglob(".snakemake/locks/*")) and os.path.exists("results/cohorts/study.json")
if workflow.is_main_process and not RUNNING:
    STUDY = study.checked(config, study.read_schema(beside("rules", "schemas", "config.schema.yaml")))
    INDEX = scan_index.refresh(
        STUDY,
        study.read_schema(beside("rules", "schemas", "scans.schema.yaml")),
        root="results/cohorts",
        volumes="results/volumes",
        phantoms="results/phantoms",
    )
    WEIGHTS = scan_index.file_sha256(STUDY["encoder"]["weights"], cache="results/cohorts/weights.json")
    scan_index.write_json({"study": STUDY, "weights": WEIGHTS}, "results/cohorts/study.json")
    for table in scan_index.left_over(INDEX, "results/volumes"):
        say(
            f"{table} belongs to no cohort or shard of this study any more; its volumes and embeddings are still on disk"
        )
else:
    # The jobs of a running workflow, and whoever looks at it from outside, see the study that it was started with,
    # whatever has been written into the config since.
    if workflow.is_main_process and "--report" not in sys.argv:
        say("a workflow is running here (or was killed: then --unlock); showing the study as it was started")
    STUDY, WEIGHTS = (json.loads(Path("results/cohorts/study.json").read_text())[key] for key in ("study", "weights"))
    INDEX = scan_index.read_index("results/cohorts")

COHORTS = list(STUDY["cohorts"])
ALARM = "Untrained encoder (random weights)" if STUDY["encoder"]["weights"] == "random" else None
CELLS = study.cells(STUDY)
ENCODER = STUDY["encoder"]["name"]
CUT = "output"  # what is cached: the output of the whole, frozen encoder
ENVIRONMENT = "../envs/fedbrain.yaml"
RUN = "results/runs/{head}/{tuning}/{aggregation}/seed-{seed}"
WEIGHTED = ("fedce", "rate_my_lora")  # the rules whose contribution weights change from round to round


wildcard_constraints:
    cohort=r"[A-Za-z][A-Za-z0-9]*",
    shard=r"\d+",
    head=r"[a-z0-9_]+",
    tuning=r"[a-z0-9_]+",
    aggregation=r"[a-z0-9_]+",
    seed=r"\d+",


def code(script, *modules):
    """A digest of the script and the modules of the library that it uses: an edit of one makes the job run again."""
    return study_code.fingerprint([beside("workflow_scripts", script), *modules])


def gpu(rule):
    """GPUs that the config gives a rule."""
    return STUDY["resources"]["gpu"][rule]


def cpu_threads(rule):
    """CPU threads that the config gives a rule."""
    return STUDY["resources"]["threads"][rule]


def shards(pattern, cohort=None):
    """``pattern`` for every shard that holds scans, of one cohort or of all."""
    return [
        pattern.format(cohort=name, shard=shard)
        for name in ([cohort] if cohort else COHORTS)
        for shard in INDEX[name]["shards"]
    ]


def runs(pattern):
    """``pattern`` for every cell and seed of the grid."""
    return [
        pattern.format(head=cell.head, tuning=cell.tuning, aggregation=cell.aggregation, seed=seed)
        for cell, seeds in CELLS.items()
        for seed in seeds
    ]


def scans_in(cohort, shard):
    """How many scans a shard holds."""
    return INDEX[cohort]["shards"][shard]


SCANS = sum(INDEX[cohort]["included"] for cohort in COHORTS)


def simulated(wildcards):
    """The phantoms that a shard waits for; none for scans that are there already."""
    if "phantom" in STUDY["cohorts"][wildcards.cohort]:
        return [f"results/phantoms/{wildcards.cohort}/shard-{wildcards.shard}.tsv"]
    return []


def cell_code(wildcards):
    """The code of one cell: the engine, and the head, tuning and aggregation that the cell names."""
    modules = [registry.module_of("head", wildcards.head), registry.module_of("tuning", wildcards.tuning)]
    if wildcards.aggregation not in registry.REFERENCES:
        modules.append(registry.module_of("aggregation", wildcards.aggregation))
    return code("train_cell.py", *modules)


def models(aggregations=None):
    """Head and tuning of the cells, as they stand in file names; of those with certain aggregations only."""
    return dict.fromkeys(
        f"{cell.head}-{cell.tuning}" for cell in CELLS if aggregations is None or cell.aggregation in aggregations
    )


def weighted_runs(wildcards):
    """Cells and seeds of one head and tuning whose contribution weights change from round to round."""
    return [
        (cell, seed)
        for cell, seeds in CELLS.items()
        if (cell.head, cell.tuning) == (wildcards.head, wildcards.tuning) and cell.aggregation in WEIGHTED
        for seed in seeds
    ]


def figure_files():
    """The figures of this study."""
    names = ["auc_by_head", "intensity_profiles"]
    names += [f"auc_by_client-{model}" for model in models()]
    names += [f"aggregation_weights-{model}" for model in models(WEIGHTED)]
    return [f"results/figures/{name}.svg" for name in names]


def make_report():
    """Writes results/report.html, once everything that belongs into it is there."""
    if not all(
        map(os.path.exists, ["results/report/study.rst", "results/evaluation/performance.tsv", *figure_files()])
    ):
        return say("no report yet: this run was asked for a part of the study only")
    # The config as it was used, whatever came from the command line.
    scan_index.write_json(config, "results/report/config.json")
    command = [sys.executable, "-m", "snakemake", "--snakefile", workflow.main_snakefile, "--nolock", "--quiet", "all"]
    command += ["--configfile", "results/report/config.json", "--report", "results/report.html"]
    subprocess.run(command, check=True)
    say(f"the report is {os.path.abspath('results/report.html')}")
