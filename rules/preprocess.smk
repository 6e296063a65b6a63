# From heads to normalized brain volumes in MNI space, a shard of scans per job.


# The volumes themselves are no declared outputs: Snakemake deletes those before a job starts, and a shard keeps the
# volumes of all scans that have not changed. The table, written last, stands for them.
rule preprocess_shard:
    input:
        manifest="results/cohorts/{cohort}/shards/{shard}.tsv",
        phantoms=simulated,
        nifti=converted,
        weights=weights_file(STUDY["preprocessing"]["extractor_weights"]),
    output:
        table="results/volumes/{cohort}/{shard}.tsv",
        intensity="results/volumes/{cohort}/{shard}_intensity.tsv",
    log:
        "results/logs/preprocess_shard/{cohort}-{shard}.log",
    benchmark:
        "results/benchmarks/preprocess_shard/{cohort}-{shard}.tsv"
    conda:
        ENVIRONMENT
    threads: cpu_threads("preprocess_shard")
    resources:
        gpu=gpu("preprocess_shard"),
        mem_mb=lambda wildcards, attempt: at_most(
            "mem_mb", work.preprocess_memory(STUDY["preprocessing"]["extractor"], attempt)
        ),
        runtime=lambda wildcards, attempt: at_most(
            "runtime",
            work.preprocess_minutes(
                STUDY["preprocessing"]["extractor"], scans_in(wildcards.cohort, wildcards.shard), attempt
            ),
        ),
    params:
        code=code(
            "preprocess_shard.py",
            registry.module_of("brain_extractor", STUDY["preprocessing"]["extractor"]),
            registry.module_of("intensity", STUDY["preprocessing"]["intensity"]),
        ),
        recipe={key: value for key, value in STUDY["preprocessing"].items() if key not in ("extractor_weights", "nyul")},
        folder=lambda wildcards: f"results/volumes/{wildcards.cohort}/{wildcards.shard}",
    script:
        "../workflow_scripts/preprocess_shard.py"
