# The federated grid: one job per cell and seed.


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
        rounds=f"{RUN}/rounds.tsv",
        predictions=f"{RUN}/predictions.tsv",
        validation=f"{RUN}/predictions_validation.tsv",
        predictions_global=f"{RUN}/predictions_global.tsv",
        validation_global=f"{RUN}/predictions_global_validation.tsv",
        model=f"{RUN}/model.safetensors",
        summary=f"{RUN}/summary.json",
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
        code=cell_code,
        cohorts=COHORTS,
        training=lambda wildcards: study.training_options(STUDY, wildcards.head, wildcards.tuning),
        head=lambda wildcards: options("head", wildcards.head),
        tuning=lambda wildcards: options("tuning", wildcards.tuning),
        aggregation=lambda wildcards: options("aggregation", wildcards.aggregation),
        encoder=cell_encoder,
    script:
        "../workflow_scripts/train_cell.py"


# The same job, but for the cohort that only has test scans in it.
use rule train_cell as train_cell_without with:
    output:
        rounds=f"{RUN_WITHOUT}/rounds.tsv",
        predictions=f"{RUN_WITHOUT}/predictions.tsv",
        validation=f"{RUN_WITHOUT}/predictions_validation.tsv",
        predictions_global=f"{RUN_WITHOUT}/predictions_global.tsv",
        validation_global=f"{RUN_WITHOUT}/predictions_global_validation.tsv",
        model=f"{RUN_WITHOUT}/model.safetensors",
        summary=f"{RUN_WITHOUT}/summary.json",
    log:
        "results/logs/train_cell_without/{head}-{tuning}-{aggregation}-{left_out}-{seed}.log",
    benchmark:
        "results/benchmarks/train_cell_without/{head}-{tuning}-{aggregation}-{left_out}-{seed}.tsv"
