# Intensity normalization that is fitted on training subjects: a standard scale per cohort or for all, and the volumes on it.
# Other methods are part of preprocess_shard, and nothing here runs.


rule fit_intensity:
    input:
        volumes=lambda wildcards: shards("results/volumes/{cohort}/{shard}.tsv", wildcards.cohort),
        splits="results/cohorts/splits.tsv",
        dropped="results/cohorts/dropped.tsv",
    output:
        scale="results/standardized/{cohort}/scale.json",
        provenance="results/standardized/{cohort}/provenance.json",
    log:
        "results/logs/fit_intensity/{cohort}.log",
    benchmark:
        "results/benchmarks/fit_intensity/{cohort}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("fit_intensity"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("fit_intensity.py"),
        method=STUDY["preprocessing"]["intensity"],
    script:
        "../workflow_scripts/fit_intensity.py"


# What travels between clients where the scale is shared: these small files, and nothing else. External cohorts have none.
rule share_intensity:
    input:
        scales=expand(
            "results/standardized/{cohort}/scale.json", cohort=[cohort for cohort in COHORTS if cohort not in EXTERNAL]
        ),
    output:
        scale="results/standardized/scale.json",
    log:
        "results/logs/share_intensity.log",
    benchmark:
        "results/benchmarks/share_intensity.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("share_intensity"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("share_intensity.py"),
    script:
        "../workflow_scripts/share_intensity.py"


# The volumes are no declared outputs, for the reason given at preprocess_shard.
rule standardize_shard:
    input:
        table="results/volumes/{cohort}/{shard}.tsv",
        scale=(
            "results/standardized/scale.json"
            if STUDY["preprocessing"]["nyul"]["scale"] == "shared"
            else "results/standardized/{cohort}/scale.json"
        ),
    output:
        table="results/standardized/{cohort}/{shard}.tsv",
        intensity="results/standardized/{cohort}/{shard}_intensity.tsv",
    log:
        "results/logs/standardize_shard/{cohort}-{shard}.log",
    benchmark:
        "results/benchmarks/standardize_shard/{cohort}-{shard}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("standardize_shard"),
        mem_mb=lambda wildcards, attempt: work.doubling(1500, attempt),
        runtime=lambda wildcards, attempt: work.doubling(
            5 + 0.05 * scans_in(wildcards.cohort, wildcards.shard), attempt
        ),
    params:
        code=code("standardize_shard.py"),
        source=lambda wildcards: f"results/volumes/{wildcards.cohort}/{wildcards.shard}",
        folder=lambda wildcards: f"results/standardized/{wildcards.cohort}/{wildcards.shard}",
    script:
        "../workflow_scripts/standardize_shard.py"
