# What the model of a cell looks at: maps of some test subjects, their means over cases and over controls, and a check.

from fedbrain.imaging.map_names import GROUPS, group_map

EXPLAINED = "results/explanation/{head}/{tuning}/{aggregation}"
EXPLANATION = STUDY["evaluation"]["explanation"]
GROUP_MAPS = [f"{EXPLAINED}/{group_map(group, method)}" for method in EXPLANATION["methods"] for group in GROUPS]


# Maps of single scans lie beside the groups' and are not declared: those that still stand are kept when the job starts.
rule explain_cell:
    input:
        scans=expand("results/cohorts/{cohort}/scans.tsv", cohort=COHORTS),
        volumes=shards(f"{NORMALIZED}.tsv"),
        predictions=lambda wildcards: first_run(wildcards, "predictions.tsv"),
        summary=lambda wildcards: first_run(wildcards, "summary.json"),
        model=ancient(lambda wildcards: first_run(wildcards, "model.safetensors")),
        harmonization=harmonization_file,
        weights=lambda wildcards: weights_file((explained_encoder(wildcards) or {}).get("weights")),
    output:
        table=report(
            f"{EXPLAINED}/explanation.tsv",
            caption="report/explanation_table.rst",
            category="Tables",
            labels={"table": "explanation maps of {head}/{tuning}/{aggregation}"},
        ),
        randomisation=f"{EXPLAINED}/randomisation.tsv",
        maps=GROUP_MAPS,
        provenance=f"{EXPLAINED}/provenance.json",
    log:
        "results/logs/explain_cell/{head}-{tuning}-{aggregation}.log",
    benchmark:
        "results/benchmarks/explain_cell/{head}-{tuning}-{aggregation}.tsv"
    conda:
        ENVIRONMENT
    threads: cpu_threads("explain_cell")
    resources:
        gpu=gpu("explain_cell"),
        mem_mb=lambda wildcards, attempt: at_most(
            "mem_mb", work.explain_memory(STUDY["encoder"]["batch_size"], attempt)
        ),
        runtime=lambda wildcards, attempt: at_most(
            "runtime",
            work.explain_minutes(
                EXPLANATION,
                min(SCANS, 2 * (EXPLANATION["subjects"] or SCANS)),
                gpu=bool(gpu("explain_cell")),
                threads=cpu_threads("explain_cell"),
                attempt=attempt,
            ),
        ),
        batch=STUDY["encoder"]["batch_size"],  # here, where a change of it runs nothing again
    params:
        code=explanation_code,
        cohorts=COHORTS,
        volumes=lambda wildcards: NORMALIZED,
        explanation={name: value for name, value in EXPLANATION.items() if name != "cells"},
        head=lambda wildcards: options("head", wildcards.head),
        tuning=lambda wildcards: options("tuning", wildcards.tuning),
        aggregation=lambda wildcards: options("aggregation", wildcards.aggregation),
        encoder=explained_encoder,
        precisions=lambda wildcards: [
            STUDY["encoder"]["precision"],
            study.training_options(STUDY, wildcards.head, wildcards.tuning).get("precision", "float32"),
        ],
        training_seed=lambda wildcards: CELLS[explained(wildcards)][0],
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/explain_cell.py"
