# What of an embedding is its hospital: how well the cohort can be told from it, and what adjusts the cohorts to each other.


rule fit_harmonization:
    input:
        scans=expand("results/cohorts/{cohort}/scans.tsv", cohort=COHORTS),
        splits="results/cohorts/splits.tsv",
        dropped="results/cohorts/dropped.tsv",
        summaries=lambda wildcards: output_files(encoder_of(wildcards.tuning), "json"),
        embeddings=ancient(lambda wildcards: output_files(encoder_of(wildcards.tuning), "safetensors")),
    output:
        parameters="results/harmonization/{tuning}.safetensors",
        clients="results/harmonization/{tuning}.tsv",
        provenance="results/harmonization/{tuning}.json",
    log:
        "results/logs/fit_harmonization/{tuning}.log",
    benchmark:
        "results/benchmarks/fit_harmonization/{tuning}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("fit_harmonization"),
        mem_mb=lambda wildcards, attempt: work.doubling(1500, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5 + SCANS / 500, attempt),
    params:
        code=lambda wildcards: code(
            "fit_harmonization.py", registry.module_of("harmonization", HARMONIZED[wildcards.tuning]["name"])
        ),
        cohorts=COHORTS,
        harmonization=lambda wildcards: HARMONIZED[wildcards.tuning] | ({"unseen": EXTERNAL} if EXTERNAL else {}),
    script:
        "../workflow_scripts/fit_harmonization.py"


use rule fit_harmonization as fit_harmonization_without with:
    output:
        parameters="results/harmonization/without-{left_out}/{tuning}.safetensors",
        clients="results/harmonization/without-{left_out}/{tuning}.tsv",
        provenance="results/harmonization/without-{left_out}/{tuning}.json",
    log:
        "results/logs/fit_harmonization_without/{tuning}-{left_out}.log",
    benchmark:
        "results/benchmarks/fit_harmonization_without/{tuning}-{left_out}.tsv"


rule measure_site_effects:
    input:
        scans=expand("results/cohorts/{cohort}/scans.tsv", cohort=COHORTS),
        splits="results/cohorts/splits.tsv",
        dropped="results/cohorts/dropped.tsv",
        volumes=shards("results/volumes/{cohort}/{shard}.tsv"),
        summaries=lambda wildcards: output_files(wildcards.encoder, "json"),
        embeddings=ancient(lambda wildcards: output_files(wildcards.encoder, "safetensors")),
        harmonizations=lambda wildcards: [
            f"results/harmonization/{tuning}.safetensors" for tuning in harmonized_tunings(wildcards.encoder)
        ],
    output:
        told=report(
            "results/site_effects/{encoder}/cohort_told.tsv",
            caption="report/cohort_told.rst",
            category="Tables",
            labels={"table": "how well the cohort can be told, {encoder}"},
        ),
        variance="results/site_effects/{encoder}/variance.tsv",
        projection="results/site_effects/{encoder}/projection.tsv",
        provenance="results/site_effects/{encoder}/provenance.json",
    log:
        "results/logs/measure_site_effects/{encoder}.log",
    benchmark:
        "results/benchmarks/measure_site_effects/{encoder}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("measure_site_effects"),
        mem_mb=lambda wildcards, attempt: work.doubling(2000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(10 + SCANS / 200, attempt),
    params:
        code=lambda wildcards: code(
            "measure_site_effects.py",
            *(
                registry.module_of("harmonization", HARMONIZED[tuning]["name"])
                for tuning in harmonized_tunings(wildcards.encoder)
            ),
        ),
        cohorts=COHORTS,
        evaluation=RESAMPLING,
        harmonizations=lambda wildcards: {
            tuning: HARMONIZED[tuning]["name"] for tuning in harmonized_tunings(wildcards.encoder)
        },
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/measure_site_effects.py"
