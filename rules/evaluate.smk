# What the cells are worth on the held-out test subjects, and the page that tells it.


rule evaluate_cells:
    input:
        predictions=runs(f"{RUN}/predictions.tsv"),
        splits="results/cohorts/splits.tsv",
    output:
        performance=report(
            "results/evaluation/performance.tsv",
            caption="report/performance.rst",
            category="Tables",
            labels={"table": "performance of every cell"},
        ),
        provenance="results/evaluation/performance.json",
    log:
        "results/logs/evaluate_cells.log",
    benchmark:
        "results/benchmarks/evaluate_cells.tsv"
    conda:
        ENVIRONMENT
    threads: cpu_threads("evaluate_cells")
    resources:
        gpu=gpu("evaluate_cells"),
        mem_mb=lambda wildcards, attempt: work.evaluate_memory(len(CELLS), attempt),
        runtime=lambda wildcards, attempt: work.evaluate_minutes(len(CELLS), attempt),
    params:
        code=code("evaluate_cells.py"),
        cohorts=COHORTS,
        evaluation=STUDY["evaluation"],
        runs=[[cell.head, cell.tuning, cell.aggregation, seed] for cell, seeds in CELLS.items() for seed in seeds],
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/evaluate_cells.py"


rule tabulate_efficiency:
    input:
        summaries=runs(f"{RUN}/summary.json"),
        rounds=runs(f"{RUN}/rounds.tsv"),
    output:
        table=report(
            "results/evaluation/efficiency.tsv",
            caption="report/efficiency.rst",
            category="Tables",
            labels={"table": "cost of every cell"},
        ),
    log:
        "results/logs/tabulate_efficiency.log",
    benchmark:
        "results/benchmarks/tabulate_efficiency.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("tabulate_efficiency"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("tabulate_efficiency.py"),
        cells=[[cell.head, cell.tuning, cell.aggregation] for cell in CELLS],
    script:
        "../workflow_scripts/tabulate_efficiency.py"


rule study_page:
    input:
        scans=expand("results/cohorts/{cohort}/scans.tsv", cohort=COHORTS),
        excluded=expand("results/cohorts/{cohort}/excluded.tsv", cohort=COHORTS),
        volumes=shards("results/volumes/{cohort}/{shard}.tsv"),
        splits="results/cohorts/splits.tsv",
        performance="results/evaluation/performance.tsv",
        efficiency="results/evaluation/efficiency.tsv",
        summaries=runs(f"{RUN}/summary.json"),
    output:
        page="results/report/study.rst",
    log:
        "results/logs/study_page.log",
    benchmark:
        "results/benchmarks/study_page.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("study_page"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("study_page.py", "fedbrain.models.cards"),
        study={
            key: STUDY[key]
            for key in (
                "title",
                "seed",
                "class_names",
                "splits",
                "preprocessing",
                "encoder",
                "evaluation",
                "training",
                "head",
                "tuning",
                "aggregation",
            )
        },
        phantoms=[cohort for cohort in COHORTS if "phantom" in STUDY["cohorts"][cohort]],
        datasets={cohort: STUDY["cohorts"][cohort].get("dataset", cohort) for cohort in COHORTS},
        cohorts=COHORTS,
        shards={cohort: list(INDEX[cohort]["shards"]) for cohort in COHORTS},
        cells=[[cell.head, cell.tuning, cell.aggregation, seeds] for cell, seeds in CELLS.items()],
    script:
        "../workflow_scripts/study_page.py"
