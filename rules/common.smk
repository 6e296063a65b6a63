# What all stages share: the checked config, the index of scans, tables of work, and what a job asks of the machine.

import glob
import json
import os
import subprocess
import sys
from pathlib import Path

from snakemake.iocontainers import Wildcards

from fedbrain import registry
from fedbrain.cohorts import index as scan_index
from fedbrain.models.tuning import OUTPUT
from fedbrain.study import code as study_code
from fedbrain.study import config as study
from fedbrain.study import resources as work
from fedbrain.tables import RUN_RESULTS


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
        nifti="results/nifti",
    )
    WEIGHTS = scan_index.file_sha256(STUDY["encoder"]["weights"], cache="results/cohorts/weights.json")
    EXTRACTOR = STUDY["preprocessing"]["extractor_weights"]
    if EXTRACTOR:
        found = scan_index.file_sha256(EXTRACTOR, cache="results/cohorts/extractor_weights.json")
        study.settle_extractor(STUDY, found)
    DROPPING = scan_index.dropping(STUDY, INDEX, volumes="results/volumes", record="results/cohorts/splits.json")
    scan_index.write_json({"study": STUDY, "weights": WEIGHTS, "dropping": DROPPING}, "results/cohorts/study.json")
    for folder, names in scan_index.left_over(INDEX, "results").items():
        say(
            f"{folder} holds what belongs to no cohort or shard of this study any more: {', '.join(names)}; delete it where "
            "data was withdrawn (docs/cohorts.md, Data that leaves the study)"
        )
else:
    # The jobs of a running workflow, and whoever looks at it from outside, see the study that it was started with,
    # whatever has been written into the config since.
    if workflow.is_main_process and "--report" not in sys.argv:
        say("a workflow is running here (or was killed: then --unlock); showing the study as it was started")
    STARTED = json.loads(Path("results/cohorts/study.json").read_text())
    STUDY, WEIGHTS, DROPPING = STARTED["study"], STARTED["weights"], STARTED["dropping"]
    INDEX = scan_index.read_index("results/cohorts")

COHORTS = list(STUDY["cohorts"])
EXTERNAL = study.external_cohorts(STUDY)  # tested on only
UNTRAINED = "Untrained encoder (random weights)"
ALARM = UNTRAINED if STUDY["encoder"]["weights"] == "random" else None
CELLS = study.cells(STUDY)
EVALUATED = study.evaluated(STUDY)  # the cells, and behind personalised ones their global models
PERSONALISED = study.personalised_cells(STUDY)  # and the global model that each is compared with
LEFT_OUT = study.left_out_cells(STUDY)  # those that are also trained without a cohort, and that cohort
KEPT = {(cell.head, cell.tuning): study.kept(STUDY, cell.head, cell.tuning) for cell in CELLS}  # what cells train on
KEPT_FILES = "results/embeddings/{encoder}/{cut}/{cohort}/{shard}"
# The tunings of the grid whose embeddings are harmonized, and how.
HARMONIZED = {cell.tuning: study.harmonization(STUDY, cell.tuning) for cell in CELLS}
HARMONIZED = {tuning: how for tuning, how in HARMONIZED.items() if how}
FITTED = STUDY["preprocessing"]["intensity"] in registry.FITTED_INTENSITIES  # on training subjects, so after the split
# Where a shard's normalized volumes lie, for every stage that looks at those. A fitted method normalizes in a stage of
# its own, after the split, which needs volumes first.
NORMALIZED = "results/standardized/{cohort}/{shard}" if FITTED else "results/volumes/{cohort}/{shard}"
ENVIRONMENT = "../envs/fedbrain.yaml"
RUN = "results/runs/{head}/{tuning}/{aggregation}/seed-{seed}"
RUN_WITHOUT = "results/runs/{head}/{tuning}/{aggregation}/without-{left_out}/seed-{seed}"
# Heads that stand for themselves, without a tuning of the encoder.
REFERENCE_HEADS = [
    head
    for head in dict.fromkeys(cell.head for cell in CELLS)
    if study.kind_of(STUDY, "head", head) in registry.TUNING_OF_REFERENCE
]
LIGHT = ("lora", "dual_lora", "norm")  # the tunings that train few parameters
EXTRA = []  # tables in results/evaluation that a study has only where it asks for them; the study page shows them
WEIGHTED = ("fedce", "rate_my_lora", "qfedavg")  # the rules whose contribution weights change from round to round


wildcard_constraints:
    cohort=r"[A-Za-z][A-Za-z0-9]*",
    left_out=r"[A-Za-z][A-Za-z0-9]*",
    shard=r"\d+",
    encoder=r"[a-z0-9_]+(-random)?",
    cut=r"[a-z0-9]+",
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


def at_most(limit, value):
    """``value`` of memory or time, or what the config allows a job at most."""
    most = STUDY["resources"]["limits"][limit]
    return value if most is None else min(value, most)


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


def predictions(side=""):
    """The test predictions, or with ``_validation`` those, of everything that is evaluated, by seed."""
    return [
        f"{RUN}/{table}{side}.tsv".format(head=cell.head, tuning=cell.tuning, aggregation=cell.aggregation, seed=seed)
        for cell, table in EVALUATED.values()
        for seed in CELLS[cell]
    ]


def runs_without(pattern):
    """``pattern`` for every cell, cohort and seed of the grid that is trained without the cohort."""
    return [
        pattern.format(head=cell.head, tuning=cell.tuning, aggregation=cell.aggregation, left_out=left_out, seed=seed)
        for (cell, left_out), seeds in LEFT_OUT.items()
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


def converted(wildcards):
    """The scans converted from DICOM that a shard waits for, if it has some."""
    if wildcards.shard in INDEX[wildcards.cohort]["dicom"]:
        return [f"results/nifti/{wildcards.cohort}/{wildcards.shard}.tsv"]
    return []


def conversions():
    """What became of all DICOM folders of the study."""
    return [f"results/nifti/{cohort}/{shard}.tsv" for cohort in COHORTS for shard in INDEX[cohort]["dicom"]]


def kept_files(wildcards, ending):
    """What the frozen prefix of a cell's encoder made of all shards."""
    source = KEPT[wildcards.head, wildcards.tuning]
    places = {"encoder": source.encoder, "cut": source.cut, "cohort": "{cohort}", "shard": "{shard}"}
    return shards(f"{KEPT_FILES}.{ending}".format(**places))


def output_files(encoder, ending):
    """The embeddings of all shards by an encoder that is frozen as a whole."""
    return shards(f"{KEPT_FILES}.{ending}".format(encoder=encoder, cut=OUTPUT, cohort="{cohort}", shard="{shard}"))


def frozen_encoders():
    """The encoders whose embeddings some cell trains on."""
    return list(dict.fromkeys(source.encoder for source in KEPT.values() if source.cut == OUTPUT))


def encoder_of(tuning):
    """The encoder of a tuning's cells, as it stands in file names."""
    return next(source.encoder for (_, name), source in KEPT.items() if name == tuning)


def harmonized_tunings(encoder):
    """The tunings that harmonize the embeddings of an encoder."""
    return [tuning for tuning in HARMONIZED if encoder_of(tuning) == encoder]


def harmonization_file(wildcards):
    """What a cell's embeddings are adjusted by, if they are; for one that is trained without a cohort fitted without it, too."""
    if wildcards.tuning not in HARMONIZED:
        return []
    left_out = wildcards.get("left_out")
    folder = f"without-{left_out}/" if left_out else ""
    return f"results/harmonization/{folder}{wildcards.tuning}.safetensors"


def weights_of(encoder):
    """The weights that stand behind an encoder's name in a file's path: a path or "random"."""
    return next(source.weights for source in KEPT.values() if source.encoder == encoder)


def weights_file(weights):
    """The file to wait for, if it is one; its time does not count, its checksum is a parameter."""
    return [] if weights in (None, "random") else ancient(weights)


def weights_sha256(weights):
    """The checksum of weights that are a file."""
    return None if weights in (None, "random") else WEIGHTS


def embedding_code(wildcards):
    """The code that makes a cut; volumes take no encoder."""
    if wildcards.encoder == "none":
        return code("embed_shard.py")
    return code("embed_shard.py", registry.module_of("encoder", STUDY["encoder"]["name"]))


def embedding_params(wildcards):
    """What decides the embeddings of an encoder; nothing of it decides volumes. The batch size does not, beyond rounding."""
    if wildcards.encoder == "none":
        return None
    weights = weights_of(wildcards.encoder)
    return {
        "encoder": STUDY["encoder"]["name"],
        "weights": weights,
        "sha256": weights_sha256(weights),
        "precision": STUDY["encoder"]["precision"],
        "seed": STUDY["seed"],
    }


def options(axis, name):
    """Options of a head, tuning or aggregation."""
    return study.options_of(STUDY, axis, name)


def trained_weights(wildcards):
    """The weights that a cell's job loads; None where it trains no part of the encoder."""
    return study.weights_to_train(STUDY, wildcards.head, wildcards.tuning)


def cell_encoder(wildcards):
    """The encoder of a cell, and the weights that its job loads, if any; None where the cell has no encoder."""
    weights = trained_weights(wildcards)
    if KEPT[wildcards.head, wildcards.tuning].encoder == "none" and weights is None:
        return None
    sha256 = weights_sha256(weights)
    return {"name": STUDY["encoder"]["name"], "weights": weights, "sha256": sha256, "seed": STUDY["seed"]}


def cell_code(wildcards):
    """The code of one cell: the engine, and the head, tuning, aggregation and encoder that the cell names."""
    used = [("head", wildcards.head), ("tuning", wildcards.tuning)]
    if wildcards.aggregation not in registry.REFERENCES:
        used.append(("aggregation", wildcards.aggregation))
    modules = [registry.module_of(axis, study.kind_of(STUDY, axis, name)) for axis, name in used]
    if trained_weights(wildcards):
        modules.append(registry.module_of("encoder", STUDY["encoder"]["name"]))
    if wildcards.tuning in HARMONIZED:
        modules.append(registry.module_of("harmonization", HARMONIZED[wildcards.tuning]["name"]))
    return code("train_cell.py", *modules)


def folder_of(wildcards):
    """Where the results of a run lie."""
    return (RUN_WITHOUT if "left_out" in wildcards.keys() else RUN).format(**dict(wildcards.items()))


def settings_of(wildcards):
    """All that decides a run beside its files and its code."""
    axes = ("head", "tuning", "aggregation")
    return {axis: wildcards[axis] for axis in axes} | {
        "seed": int(wildcards.seed),
        "left_out": wildcards.get("left_out"),
        "options": {axis: options(axis, wildcards[axis]) for axis in axes},
        "training": study.training_options(STUDY, wildcards.head, wildcards.tuning),
        "encoder": cell_encoder(wildcards),
        "folder": folder_of(wildcards),
    }


def batches():
    """The runs of the grid by job, where the config puts several into one: those that start from the same files."""
    most = STUDY["resources"]["cells_per_job"]
    if most == 1:
        return []
    listed = [(cell, seed, {}) for cell, seeds in CELLS.items() for seed in seeds]
    listed += [(cell, seed, {"left_out": left_out}) for (cell, left_out), seeds in LEFT_OUT.items() for seed in seeds]
    groups = {}
    for cell, seed, without in listed:
        run = Wildcards(fromdict=vars(cell) | {"seed": str(seed)} | without)
        start = (KEPT[cell.head, cell.tuning], str(harmonization_file(run)))
        groups.setdefault(start, []).append(run)
    return [group[first : first + most] for group in groups.values() for first in range(0, len(group), most)]


def cell_work(wildcards):
    """What decides the memory and the time of a cell's job."""
    training = study.training_options(STUDY, wildcards.head, wildcards.tuning)
    further = 0
    if wildcards.aggregation not in registry.REFERENCES:
        how = registry.build("aggregation", wildcards.aggregation, options("aggregation", wildcards.aggregation))
        in_rounds = training["rounds"] * training["local_epochs"] if how.own_model == "rounds" else 0
        further = in_rounds + getattr(how, "personal_epochs", 0)
    tuned = registry.build("tuning", wildcards.tuning, options("tuning", wildcards.tuning))
    return work.CellWork(
        scans=SCANS,
        clients=len(COHORTS),
        head=study.kind_of(STUDY, "head", wildcards.head),
        cut=KEPT[wildcards.head, wildcards.tuning].cut,
        adapters=study.kind_of(STUDY, "tuning", wildcards.tuning) in LIGHT,
        downsample=options("head", wildcards.head).get("downsample", 1),
        training=training,
        further_epochs=further,
        gpu=bool(gpu("train_cell")),
        threads=cpu_threads("train_cell"),
    )


def explained(wildcards):
    """The cell that a rule of explanation maps is about."""
    return study.Cell(wildcards.head, wildcards.tuning, wildcards.aggregation)


def first_run(wildcards, name):
    """A file of the cell's run with its first seed."""
    return f"{RUN}/{name}".format(**dict(wildcards.items()), seed=CELLS[explained(wildcards)][0])


def explanation_code(wildcards):
    """The code that explains one cell: the maps', and that of what the cell names."""
    modules = [
        registry.module_of(axis, study.kind_of(STUDY, axis, name))
        for axis, name in zip(study.AXES, (wildcards.head, wildcards.tuning, wildcards.aggregation))
        if name not in registry.REFERENCES
    ]
    if explained_encoder(wildcards):
        modules.append(registry.module_of("encoder", STUDY["encoder"]["name"]))
    if wildcards.tuning in HARMONIZED:
        modules.append(registry.module_of("harmonization", HARMONIZED[wildcards.tuning]["name"]))
    return code("explain_cell.py", *modules)


def explained_encoder(wildcards):
    """The encoder behind a cell's scores, and its weights, whether training loads them or not; None where there is none."""
    source = KEPT[wildcards.head, wildcards.tuning]
    weights = trained_weights(wildcards) or (None if source.encoder == "none" else source.weights)
    if weights is None:
        return None
    return {
        "name": STUDY["encoder"]["name"],
        "weights": weights,
        "sha256": weights_sha256(weights),
        "seed": STUDY["seed"],
    }


def is_weighted(cell):
    """Whether the contribution weights of a cell change from round to round."""
    return study.kind_of(STUDY, "aggregation", cell.aggregation) in WEIGHTED


def models(chosen=lambda cell: True):
    """Head and tuning of the chosen cells, as they stand in file names."""
    return dict.fromkeys(f"{cell.head}-{cell.tuning}" for cell in CELLS if chosen(cell))


def several_tunings():
    """Whether some head is trained with more than one tuning under the aggregation that the figures show."""
    shown = study.drawn_aggregation(STUDY)
    pairs = {(c.head, c.tuning) for c in CELLS if c.aggregation == shown and c.head not in REFERENCE_HEADS}
    return len({head for head, _ in pairs}) < len(pairs)


def weighted_runs(wildcards):
    """Cells and seeds of one head and tuning whose contribution weights change from round to round."""
    return [
        (cell, seed)
        for cell, seeds in CELLS.items()
        if (cell.head, cell.tuning) == (wildcards.head, wildcards.tuning) and is_weighted(cell)
        for seed in seeds
    ]


def figure_files():
    """The figures of this study."""
    names = ["auc_by_head", "intensity_profiles", "auc_forest", "auc_table", "auc_by_cost", "communication"]
    names += ["roc_curves", "calibration_curves"]
    names += [f"site_effects-{encoder}" for encoder in frozen_encoders()]
    if several_tunings():
        names.append("auc_by_tuning")
    names += [f"auc_by_client-{model}" for model in models()]
    names += [f"personalisation-{model}" for model in models(PERSONALISED.__contains__)]
    names += [f"learning_curves-{model}" for model in models()]
    names += [f"aggregation_weights-{model}" for model in models(is_weighted)]
    names += [f"explanation-{c.head}-{c.tuning}-{c.aggregation}" for c in study.explained_cells(STUDY)]
    if STUDY["evaluation"]["privacy"]["cells"]:
        names.append("membership")
    if LEFT_OUT or EXTERNAL:
        names.append("transfer")
    return [f"results/figures/{name}.svg" for name in names]


def quality_pages():
    """The pages on which the scans of each cohort are looked at."""
    return [f"results/quality/{cohort}.html" for cohort in COHORTS]


def make_report():
    """Writes results/report.html, once everything that belongs into it is there, and says where it and the study page are."""
    needed = [
        "results/report/study.html",
        "results/report/study.rst",
        "results/evaluation/performance.tsv",
        *quality_pages(),
        *figure_files(),
    ]
    if not all(map(os.path.exists, needed)):
        return say("no report yet: this run was asked for a part of the study only")
    # The config as it was used, whatever came from the command line.
    scan_index.write_json(config, "results/report/config.json")
    command = [sys.executable, "-m", "snakemake", "--snakefile", workflow.main_snakefile, "--nolock", "--quiet", "all"]
    command += ["--configfile", "results/report/config.json", "--report", "results/report.html"]
    subprocess.run(command, check=True)
    say(f"the study page is {os.path.abspath('results/report/study.html')}")
    say(f"the report, with that page and all figures and tables, is {os.path.abspath('results/report.html')}")
