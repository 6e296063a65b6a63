# What the cells are worth on cohorts that they have never seen: left out of the training, or external.

if LEFT_OUT or EXTERNAL:
    EXTRA.append("results/evaluation/transfer.tsv")

# What is evaluated without each cohort: the name in tables, the cell that was trained, the stem of its tables, and its seeds.
UNSEEN = [
    (name, cell, table, left_out, LEFT_OUT[cell, left_out])
    for left_out in dict.fromkeys(cohort for _, cohort in LEFT_OUT)
    for name, (cell, table) in EVALUATED.items()
    if (cell, left_out) in LEFT_OUT
]


rule evaluate_transfer:
    input:
        predictions=predictions(),
        without=[
            f"{RUN_WITHOUT}/{table}.tsv".format(**vars(cell), left_out=left_out, seed=seed)
            for _, cell, table, left_out, seeds in UNSEEN
            for seed in seeds
        ],
        splits="results/cohorts/splits.tsv",
    output:
        table=report(
            "results/evaluation/transfer.tsv",
            caption="report/transfer_table.rst",
            category="Tables",
            labels={"table": "performance on unseen cohorts"},
        ),
        provenance="results/evaluation/transfer.json",
    log:
        "results/logs/evaluate_transfer.log",
    benchmark:
        "results/benchmarks/evaluate_transfer.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("evaluate_transfer"),
        mem_mb=lambda wildcards, attempt: work.evaluate_memory(len(CELLS), attempt),
        runtime=lambda wildcards, attempt: work.evaluate_minutes(len(CELLS) + len(UNSEEN), attempt),
    params:
        code=code("evaluate_transfer.py"),
        cohorts=COHORTS,
        external=EXTERNAL,
        evaluation=RESAMPLING,
        runs=RUNS,
        without=[
            [name.head, name.tuning, name.aggregation, left_out, seed]
            for name, _, _, left_out, seeds in UNSEEN
            for seed in seeds
        ],
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/evaluate_transfer.py"


rule plot_transfer:
    input:
        transfer="results/evaluation/transfer.tsv",
    output:
        svg=report(
            "results/figures/transfer.svg",
            caption="report/transfer.rst",
            category="Performance",
            labels={"figure": "AUC on unseen cohorts", "head": "all", "tuning": "all"},
        ),
        png="results/figures/transfer.png",
    log:
        "results/logs/plot_transfer.log",
    benchmark:
        "results/benchmarks/plot_transfer.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_transfer"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_transfer.py"),
        alarm=ALARM,
        cohorts=COHORTS,
        level=STUDY["evaluation"]["level"],
    script:
        "../workflow_scripts/plot_transfer.py"
