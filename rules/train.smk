# The federated grid: one job per cell and seed.


rule train_cell:
    input:
        scans=expand("results/cohorts/{cohort}/scans.tsv", cohort=COHORTS),
        splits="results/cohorts/splits.tsv",
        summaries=shards(f"results/embeddings/{ENCODER}/{CUT}/{{cohort}}/{{shard}}.json"),
        embeddings=ancient(shards(f"results/embeddings/{ENCODER}/{CUT}/{{cohort}}/{{shard}}.safetensors")),
    output:
        rounds=f"{RUN}/rounds.tsv",
        predictions=f"{RUN}/predictions.tsv",
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
        mem_mb=lambda wildcards, attempt: work.train_memory(SCANS, wildcards.head, attempt),
        runtime=lambda wildcards, attempt: work.train_minutes(
            SCANS,
            study.training_options(STUDY, wildcards.head)["rounds"],
            study.training_options(STUDY, wildcards.head)["local_epochs"],
            wildcards.head,
            attempt,
        ),
    params:
        code=cell_code,
        cohorts=COHORTS,
        training=lambda wildcards: study.training_options(STUDY, wildcards.head),
        aggregation=lambda wildcards: study.aggregation_options(STUDY, wildcards.aggregation),
    script:
        "../workflow_scripts/train_cell.py"
