# Volumes for other software: asked for by name, `snakemake --cores 2 derivatives`, and no part of the study itself.


rule export_derivatives:
    input:
        scans="results/cohorts/{cohort}/scans.tsv",
        volumes=lambda wildcards: shards(f"{NORMALIZED}.tsv", wildcards.cohort),
    output:
        folder=directory("results/derivatives/{cohort}"),
    log:
        "results/logs/export_derivatives/{cohort}.log",
    benchmark:
        "results/benchmarks/export_derivatives/{cohort}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("export_derivatives"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(15, attempt),
    params:
        code=code("export_derivatives.py"),
        title=STUDY["title"],
        raw=lambda wildcards: STUDY["cohorts"][wildcards.cohort].get("bids"),
    script:
        "../workflow_scripts/export_derivatives.py"
