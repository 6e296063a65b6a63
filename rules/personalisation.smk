# What models of the clients' own are worth, where the grid has rules that make some.

if PERSONALISED:
    EXTRA.append("results/evaluation/personalisation.tsv")


rule compare_personal_models:
    input:
        predictions=predictions(),
        splits="results/cohorts/splits.tsv",
    output:
        table=report(
            "results/evaluation/personalisation.tsv",
            caption="report/personalisation_table.rst",
            category="Tables",
            labels={"table": "clients' own models against others"},
        ),
        provenance="results/evaluation/personalisation.json",
    log:
        "results/logs/compare_personal_models.log",
    benchmark:
        "results/benchmarks/compare_personal_models.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("compare_personal_models"),
        mem_mb=lambda wildcards, attempt: work.evaluate_memory(len(EVALUATED), attempt),
        runtime=lambda wildcards, attempt: work.evaluate_minutes(len(EVALUATED), attempt),
    params:
        code=code("compare_personal_models.py"),
        cohorts=COHORTS,
        evaluation=RESAMPLING,
        family=STUDY["evaluation"]["comparisons"]["family"],
        personal=[
            [[cell.head, cell.tuning, cell.aggregation], common and [common.head, common.tuning, common.aggregation]]
            for cell, common in PERSONALISED.items()
        ],
        own_models=study.own_models(STUDY),
        runs=RUNS,
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/compare_personal_models.py"


rule plot_personalisation:
    input:
        table="results/evaluation/personalisation.tsv",
    output:
        svg=report(
            "results/figures/personalisation-{head}-{tuning}.svg",
            caption="report/personalisation.rst",
            category="Performance",
            labels={"figure": "clients' own models against others", "head": "{head}", "tuning": "{tuning}"},
        ),
        png="results/figures/personalisation-{head}-{tuning}.png",
    log:
        "results/logs/plot_personalisation-{head}-{tuning}.log",
    benchmark:
        "results/benchmarks/plot_personalisation-{head}-{tuning}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_personalisation"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_personalisation.py"),
        alarm=ALARM,
        cohorts=COHORTS,
        level=STUDY["evaluation"]["level"],
    script:
        "../workflow_scripts/plot_personalisation.py"
