# One rule per figure: SVG for the report, PNG for slides.

HEADS = list(dict.fromkeys(cell.head for cell in CELLS))
WEIGHTED = ("fedce", "rate_my_lora")  # the rules whose contribution weights change from round to round
WEIGHTED_HEADS = [head for head in HEADS if any(cell.head == head and cell.aggregation in WEIGHTED for cell in CELLS)]


def figure_files():
    """The figures of this study."""
    names = ["auc_by_head", "intensity_profiles"]
    names += [f"auc_by_client-{head}" for head in HEADS]
    names += [f"aggregation_weights-{head}" for head in WEIGHTED_HEADS]
    return [f"results/figures/{name}.svg" for name in names]


rule plot_auc_by_head:
    input:
        performance="results/evaluation/performance.tsv",
        code=code("plot_auc_by_head.py"),
    output:
        svg=report(
            "results/figures/auc_by_head.svg",
            caption="report/auc_by_head.rst",
            category="Performance",
            labels={"figure": "AUC by head and cohort", "head": "all"},
        ),
        png="results/figures/auc_by_head.png",
    log:
        "results/logs/plot_auc_by_head.log",
    benchmark:
        "results/benchmarks/plot_auc_by_head.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_auc_by_head"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        cohorts=COHORTS,
        aggregation=STUDY["figures"]["aggregation"],
    script:
        "../workflow_scripts/plot_auc_by_head.py"


rule plot_auc_by_client:
    input:
        performance="results/evaluation/performance.tsv",
        code=code("plot_auc_by_client.py"),
    output:
        svg=report(
            "results/figures/auc_by_client-{head}.svg",
            caption="report/auc_by_client.rst",
            category="Performance",
            labels={"figure": "AUC by client and aggregation", "head": "{head}"},
        ),
        png="results/figures/auc_by_client-{head}.png",
    log:
        "results/logs/plot_auc_by_client-{head}.log",
    benchmark:
        "results/benchmarks/plot_auc_by_client-{head}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_auc_by_client"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        cohorts=COHORTS,
    script:
        "../workflow_scripts/plot_auc_by_client.py"


rule plot_intensity_profiles:
    input:
        intensity=shards("results/volumes/{cohort}/{shard}_intensity.tsv"),
        code=code("plot_intensity_profiles.py"),
    output:
        svg=report(
            "results/figures/intensity_profiles.svg",
            caption="report/intensity_profiles.rst",
            category="Data",
            labels={"figure": "intensity profiles by client", "head": "-"},
        ),
        png="results/figures/intensity_profiles.png",
    log:
        "results/logs/plot_intensity_profiles.log",
    benchmark:
        "results/benchmarks/plot_intensity_profiles.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_intensity_profiles"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        cohorts={cohort: shards("results/volumes/{cohort}/{shard}_intensity.tsv", cohort) for cohort in COHORTS},
        intensity=STUDY["preprocessing"]["intensity"],
    script:
        "../workflow_scripts/plot_intensity_profiles.py"


rule plot_aggregation_weights:
    input:
        rounds=lambda wildcards: [
            RUN.format(head=cell.head, tuning=cell.tuning, aggregation=cell.aggregation, seed=seed) + "/rounds.tsv"
            for cell, seeds in CELLS.items()
            if cell.head == wildcards.head and cell.aggregation in WEIGHTED
            for seed in seeds
        ],
        code=code("plot_aggregation_weights.py"),
    output:
        svg=report(
            "results/figures/aggregation_weights-{head}.svg",
            caption="report/aggregation_weights.rst",
            category="Aggregation",
            labels={"figure": "contribution weight by round", "head": "{head}"},
        ),
        png="results/figures/aggregation_weights-{head}.png",
    log:
        "results/logs/plot_aggregation_weights-{head}.log",
    benchmark:
        "results/benchmarks/plot_aggregation_weights-{head}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_aggregation_weights"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        cohorts=COHORTS,
        runs=lambda wildcards: [
            [cell.tuning, cell.aggregation, seed]
            for cell, seeds in CELLS.items()
            if cell.head == wildcards.head and cell.aggregation in WEIGHTED
            for seed in seeds
        ],
    script:
        "../workflow_scripts/plot_aggregation_weights.py"
