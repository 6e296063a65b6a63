# The federated grid: one job per run, which is a cell with a seed, or several where the config says so.


rule train_cell:
    input:
        scans=expand("results/cohorts/{cohort}/scans.tsv", cohort=COHORTS),
        splits="results/cohorts/splits.tsv",
        dropped="results/cohorts/dropped.tsv",
        summaries=lambda wildcards: kept_files(wildcards, "json"),
        embeddings=ancient(lambda wildcards: kept_files(wildcards, "safetensors")),
        harmonization=harmonization_file,
        weights=lambda wildcards: weights_file(trained_weights(wildcards)),
    output:
        [f"{RUN}/{name}" for name in RUN_RESULTS],
    log:
        "results/logs/train_cell/{head}-{tuning}-{aggregation}-{seed}.log",
    benchmark:
        "results/benchmarks/train_cell/{head}-{tuning}-{aggregation}-{seed}.tsv"
    conda:
        ENVIRONMENT
    threads: cpu_threads("train_cell")
    resources:
        gpu=gpu("train_cell"),
        mem_mb=lambda wildcards, attempt: at_most("mem_mb", work.train_memory(cell_work(wildcards), attempt)),
        runtime=lambda wildcards, attempt: at_most("runtime", work.train_minutes(cell_work(wildcards), attempt)),
    params:
        cohorts=COHORTS,
        code=lambda wildcards: [cell_code(wildcards)],
        runs=lambda wildcards: [settings_of(wildcards)],
    script:
        "../workflow_scripts/train_cell.py"


# The same job, but for the cohort that only has test scans in it.
use rule train_cell as train_cell_without with:
    output:
        [f"{RUN_WITHOUT}/{name}" for name in RUN_RESULTS],
    log:
        "results/logs/train_cell_without/{head}-{tuning}-{aggregation}-{left_out}-{seed}.log",
    benchmark:
        "results/benchmarks/train_cell_without/{head}-{tuning}-{aggregation}-{left_out}-{seed}.tsv"


# Several runs in one job: they share what they start from, so it is imported and loaded once. `update`: a run that is there and
# whose inputs are the same is not trained again for the sake of another one in its job.
for number, batch in enumerate(batches()):
    workflow.ruleorder(f"train_cells_{number}", "train_cell", "train_cell_without")

    rule:
        name:
            f"train_cells_{number}"
        input:
            scans=expand("results/cohorts/{cohort}/scans.tsv", cohort=COHORTS),
            splits="results/cohorts/splits.tsv",
            dropped="results/cohorts/dropped.tsv",
            summaries=kept_files(batch[0], "json"),
            embeddings=ancient(kept_files(batch[0], "safetensors")),
            harmonization=harmonization_file(batch[0]),
            weights=[
                weights_file(weights) for weights in {trained_weights(run) for run in batch} if weights_file(weights)
            ],
        output:
            update([f"{folder_of(run)}/{name}" for run in batch for name in RUN_RESULTS]),
        log:
            f"results/logs/train_cells/{number}.log",
        benchmark:
            f"results/benchmarks/train_cells/{number}.tsv"
        conda:
            ENVIRONMENT
        threads: cpu_threads("train_cell")
        resources:
            gpu=gpu("train_cell"),
            mem_mb=lambda wildcards, attempt, batch=batch: at_most(
                "mem_mb", max(work.train_memory(cell_work(run), attempt) for run in batch)
            ),
            runtime=lambda wildcards, attempt, batch=batch: at_most(
                "runtime", sum(work.train_minutes(cell_work(run), attempt) for run in batch)
            ),
        params:
            cohorts=COHORTS,
            code=[cell_code(run) for run in batch],
            runs=[settings_of(run) for run in batch],
        script:
            "../workflow_scripts/train_cell.py"
