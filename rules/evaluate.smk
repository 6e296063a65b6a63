# What the cells are worth on the held-out test subjects, and the page that tells it.

from fedbrain.evaluation.settings import reference_cell, rising_ages

# As in predictions(): head, tuning, aggregation and seed of each table.
RUNS = [[name.head, name.tuning, name.aggregation, s] for name, (cell, _) in EVALUATED.items() for s in CELLS[cell]]
RESAMPLING = {key: STUDY["evaluation"][key] for key in ("resamples", "level", "method")}
# A wrong reference or age band is told now, not after the training.
REFERENCE = reference_cell(
    STUDY["evaluation"]["comparisons"]["reference"], [(name.head, name.tuning, name.aggregation) for name in EVALUATED]
)
AGE_EDGES = rising_ages(STUDY["evaluation"]["subgroups"]["age_edges"])


rule evaluate_cells:
    input:
        predictions=predictions(),
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
        mem_mb=lambda wildcards, attempt: work.evaluate_memory(len(EVALUATED), attempt),
        runtime=lambda wildcards, attempt: work.evaluate_minutes(len(EVALUATED), attempt),
    params:
        code=code("evaluate_cells.py"),
        cohorts=COHORTS,
        evaluation=RESAMPLING,
        own_models=study.own_models(STUDY),
        runs=RUNS,
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/evaluate_cells.py"


rule compare_cells:
    input:
        predictions=predictions(),
        splits="results/cohorts/splits.tsv",
    output:
        table=report(
            "results/evaluation/comparisons.tsv",
            caption="report/comparisons.rst",
            category="Tables",
            labels={"table": "differences between cells"},
        ),
        provenance="results/evaluation/comparisons.json",
    log:
        "results/logs/compare_cells.log",
    benchmark:
        "results/benchmarks/compare_cells.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("compare_cells"),
        mem_mb=lambda wildcards, attempt: work.evaluate_memory(len(EVALUATED), attempt),
        runtime=lambda wildcards, attempt: work.evaluate_minutes(len(EVALUATED), attempt),
    params:
        code=code("compare_cells.py"),
        cohorts=COHORTS,
        evaluation=RESAMPLING,
        reference=REFERENCE,
        family=STUDY["evaluation"]["comparisons"]["family"],
        own_models=study.own_models(STUDY),
        runs=RUNS,
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/compare_cells.py"


rule calibrate_cells:
    input:
        predictions=predictions(),
        splits="results/cohorts/splits.tsv",
    output:
        table=report(
            "results/evaluation/calibration.tsv",
            caption="report/calibration.rst",
            category="Tables",
            labels={"table": "calibration curves"},
        ),
        provenance="results/evaluation/calibration.json",
    log:
        "results/logs/calibrate_cells.log",
    benchmark:
        "results/benchmarks/calibrate_cells.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("calibrate_cells"),
        mem_mb=lambda wildcards, attempt: work.evaluate_memory(len(EVALUATED), attempt),
        runtime=lambda wildcards, attempt: work.evaluate_minutes(len(EVALUATED), attempt),
    params:
        code=code("calibrate_cells.py"),
        cohorts=COHORTS,
        bins=STUDY["evaluation"]["calibration"]["bins"],
        level=STUDY["evaluation"]["level"],
        runs=RUNS,
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/calibrate_cells.py"


rule evaluate_thresholds:
    input:
        predictions=predictions(),
        validation=predictions("_validation"),
        splits="results/cohorts/splits.tsv",
    output:
        table=report(
            "results/evaluation/thresholds.tsv",
            caption="report/thresholds.rst",
            category="Tables",
            labels={"table": "performance at thresholds"},
        ),
        provenance="results/evaluation/thresholds.json",
    log:
        "results/logs/evaluate_thresholds.log",
    benchmark:
        "results/benchmarks/evaluate_thresholds.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("evaluate_thresholds"),
        mem_mb=lambda wildcards, attempt: work.evaluate_memory(len(EVALUATED), attempt),
        runtime=lambda wildcards, attempt: work.evaluate_minutes(len(EVALUATED), attempt),
    params:
        code=code("evaluate_thresholds.py"),
        cohorts=COHORTS,
        evaluation=RESAMPLING,
        runs=RUNS,
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/evaluate_thresholds.py"


rule evaluate_subgroups:
    input:
        predictions=predictions(),
        scans=expand("results/cohorts/{cohort}/scans.tsv", cohort=COHORTS),
        scanners=expand("results/cohorts/{cohort}/scanners.tsv", cohort=COHORTS),
        nifti=conversions(),
        splits="results/cohorts/splits.tsv",
    output:
        table=report(
            "results/evaluation/subgroups.tsv",
            caption="report/subgroups.rst",
            category="Tables",
            labels={"table": "performance by sex, age and site"},
        ),
        provenance="results/evaluation/subgroups.json",
    log:
        "results/logs/evaluate_subgroups.log",
    benchmark:
        "results/benchmarks/evaluate_subgroups.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("evaluate_subgroups"),
        mem_mb=lambda wildcards, attempt: work.evaluate_memory(len(EVALUATED), attempt),
        runtime=lambda wildcards, attempt: work.evaluate_minutes(len(EVALUATED), attempt),
    params:
        code=code("evaluate_subgroups.py"),
        cohorts=COHORTS,
        evaluation=RESAMPLING,
        attributes=STUDY["evaluation"]["subgroups"]["attributes"],
        age_edges=AGE_EDGES,
        runs=RUNS,
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/evaluate_subgroups.py"


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


PAGE_PARTS = ("base.css", "study_page.css", "base.js", "theme.js", "study_page.js")


rule study_page:
    input:
        scans=expand("results/cohorts/{cohort}/scans.tsv", cohort=COHORTS),
        excluded=expand("results/cohorts/{cohort}/excluded.tsv", cohort=COHORTS),
        passed_over=expand("results/cohorts/{cohort}/passed_over.tsv", cohort=COHORTS),
        volumes=shards(f"{NORMALIZED}.tsv"),
        splits="results/cohorts/splits.tsv",
        duplicates="results/cohorts/duplicates.tsv",
        dropped="results/cohorts/dropped.tsv",
        quality=expand("results/quality/{cohort}.tsv", cohort=COHORTS),
        performance="results/evaluation/performance.tsv",
        efficiency="results/evaluation/efficiency.tsv",
        comparisons="results/evaluation/comparisons.tsv",
        calibration="results/evaluation/calibration.tsv",
        thresholds="results/evaluation/thresholds.tsv",
        subgroups="results/evaluation/subgroups.tsv",
        site_effects=expand("results/site_effects/{encoder}/cohort_told.tsv", encoder=frozen_encoders()),
        site_variance=expand("results/site_effects/{encoder}/variance.tsv", encoder=frozen_encoders()),
        harmonization=expand("results/harmonization/{tuning}.tsv", tuning=HARMONIZED),
        summaries=runs(f"{RUN}/summary.json"),
        figures=lambda wildcards: figure_files(),
        extra=lambda wildcards: EXTRA,
        look=[beside("src", "fedbrain", "report", name) for name in PAGE_PARTS],
    output:
        page="results/report/study.html",
        landing="results/report/study.rst",
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
        code=code("study_page.py", "fedbrain.models.cards", "fedbrain.imaging.outliers"),
        study={
            key: STUDY[key]
            for key in (
                "title",
                "seed",
                "labels",
                "class_names",
                "splits",
                "preprocessing",
                "quality",
                "encoder",
                "evaluation",
                "training",
                "head",
                "tuning",
                "aggregation",
            )
        },
        phantoms=[cohort for cohort in COHORTS if "phantom" in STUDY["cohorts"][cohort]],
        external=EXTERNAL,
        drawn=study.drawn_aggregation(STUDY),
        encoders=frozen_encoders(),
        harmonized=list(HARMONIZED),
        datasets={cohort: STUDY["cohorts"][cohort].get("dataset", cohort) for cohort in COHORTS},
        cohorts=COHORTS,
        shards={cohort: list(INDEX[cohort]["shards"]) for cohort in COHORTS},
        cells=[[cell.head, cell.tuning, cell.aggregation, seeds] for cell, seeds in CELLS.items()],
    script:
        "../workflow_scripts/study_page.py"
