# Who takes part: simulated cohorts where the config asks for them, and the sides on which subjects stand.


rule make_phantoms:
    input:
        manifest="results/cohorts/{cohort}/shards/{shard}.tsv",
        scans=ancient("results/cohorts/{cohort}/scans.tsv"),  # who they are; the manifest says when they are others
    output:
        table="results/phantoms/{cohort}/shard-{shard}.tsv",
    log:
        "results/logs/make_phantoms/{cohort}-{shard}.log",
    benchmark:
        "results/benchmarks/make_phantoms/{cohort}-{shard}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("make_phantoms"),
        mem_mb=lambda wildcards, attempt: work.doubling(2500, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5 + 0.5 * scans_in(wildcards.cohort, wildcards.shard), attempt),
    params:
        code=code("make_phantoms.py"),
        look=lambda wildcards: study.phantom_look(STUDY, wildcards.cohort),
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/make_phantoms.py"


rule split_subjects:
    input:
        scans=expand("results/cohorts/{cohort}/scans.tsv", cohort=COHORTS),
        volumes=shards("results/volumes/{cohort}/{shard}.tsv"),
        study=ancient("results/cohorts/study.json"),  # its thresholds; they count where they drop other scans, see dropping
    output:
        splits="results/cohorts/splits.tsv",
        dropped="results/cohorts/dropped.tsv",
        duplicates="results/cohorts/duplicates.tsv",
        provenance="results/cohorts/splits.json",
    log:
        "results/logs/split_subjects.log",
    benchmark:
        "results/benchmarks/split_subjects.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("split_subjects"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("split_subjects.py"),
        cohorts=COHORTS,
        splits=STUDY["splits"] | ({"external": EXTERNAL} if EXTERNAL else {}),
        seed=STUDY["seed"],
        dropping=DROPPING,
    script:
        "../workflow_scripts/split_subjects.py"
