# One rule per figure: SVG for the report, PNG for slides.


rule plot_auc_by_head:
    input:
        performance="results/evaluation/performance.tsv",
    output:
        svg=report(
            "results/figures/auc_by_head.svg",
            caption="report/auc_by_head.rst",
            category="Performance",
            labels={"figure": "AUC by head and cohort", "head": "all", "tuning": "all"},
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
        code=code("plot_auc_by_head.py"),
        alarm=ALARM,
        cohorts=COHORTS,
        aggregation=study.drawn_aggregation(STUDY),
        references=REFERENCE_HEADS,
        level=STUDY["evaluation"]["level"],
    script:
        "../workflow_scripts/plot_auc_by_head.py"


rule plot_auc_by_tuning:
    input:
        performance="results/evaluation/performance.tsv",
    output:
        svg=report(
            "results/figures/auc_by_tuning.svg",
            caption="report/auc_by_tuning.rst",
            category="Performance",
            labels={"figure": "AUC by tuning and cohort", "head": "all", "tuning": "all"},
        ),
        png="results/figures/auc_by_tuning.png",
    log:
        "results/logs/plot_auc_by_tuning.log",
    benchmark:
        "results/benchmarks/plot_auc_by_tuning.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_auc_by_tuning"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_auc_by_tuning.py"),
        alarm=ALARM,
        cohorts=COHORTS,
        aggregation=study.drawn_aggregation(STUDY),
        references=REFERENCE_HEADS,
        level=STUDY["evaluation"]["level"],
    script:
        "../workflow_scripts/plot_auc_by_tuning.py"


rule plot_auc_by_client:
    input:
        performance="results/evaluation/performance.tsv",
    output:
        svg=report(
            "results/figures/auc_by_client-{head}-{tuning}.svg",
            caption="report/auc_by_client.rst",
            category="Performance",
            labels={"figure": "AUC by client and aggregation", "head": "{head}", "tuning": "{tuning}"},
        ),
        png="results/figures/auc_by_client-{head}-{tuning}.png",
    log:
        "results/logs/plot_auc_by_client-{head}-{tuning}.log",
    benchmark:
        "results/benchmarks/plot_auc_by_client-{head}-{tuning}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_auc_by_client"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_auc_by_client.py"),
        alarm=ALARM,
        cohorts=COHORTS,
        level=STUDY["evaluation"]["level"],
    script:
        "../workflow_scripts/plot_auc_by_client.py"


rule plot_intensity_profiles:
    input:
        intensity=shards(f"{NORMALIZED}_intensity.tsv"),
    output:
        svg=report(
            "results/figures/intensity_profiles.svg",
            caption="report/intensity_profiles.rst",
            category="Data",
            labels={"figure": "intensity profiles by client"},
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
        code=code("plot_intensity_profiles.py"),
        cohorts={cohort: shards(f"{NORMALIZED}_intensity.tsv", cohort) for cohort in COHORTS},
        intensity=STUDY["preprocessing"]["intensity"],
        scale=STUDY["preprocessing"]["nyul"]["scale"] if FITTED else None,  # for the caption
    script:
        "../workflow_scripts/plot_intensity_profiles.py"


rule plot_aggregation_weights:
    input:
        rounds=lambda wildcards: [
            f"results/runs/{cell}/seed-{seed}/rounds.tsv" for cell, seed in weighted_runs(wildcards)
        ],
    output:
        svg=report(
            "results/figures/aggregation_weights-{head}-{tuning}.svg",
            caption="report/aggregation_weights.rst",
            category="Aggregation",
            labels={"figure": "contribution weight by round", "head": "{head}", "tuning": "{tuning}"},
        ),
        png="results/figures/aggregation_weights-{head}-{tuning}.png",
    log:
        "results/logs/plot_aggregation_weights-{head}-{tuning}.log",
    benchmark:
        "results/benchmarks/plot_aggregation_weights-{head}-{tuning}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_aggregation_weights"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_aggregation_weights.py"),
        alarm=ALARM,
        cohorts=COHORTS,
        runs=lambda wildcards: [[cell.aggregation, seed] for cell, seed in weighted_runs(wildcards)],
    script:
        "../workflow_scripts/plot_aggregation_weights.py"


rule plot_auc_forest:
    input:
        performance="results/evaluation/performance.tsv",
    output:
        svg=report(
            "results/figures/auc_forest.svg",
            caption="report/auc_forest.rst",
            category="Performance",
            labels={"figure": "pooled AUC of every cell", "head": "all", "tuning": "all"},
        ),
        png="results/figures/auc_forest.png",
    log:
        "results/logs/plot_auc_forest.log",
    benchmark:
        "results/benchmarks/plot_auc_forest.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_auc_forest"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_auc_forest.py"),
        alarm=ALARM,
        level=STUDY["evaluation"]["level"],
    script:
        "../workflow_scripts/plot_auc_forest.py"


rule plot_learning_curves:
    input:
        rounds=lambda wildcards: [
            f"results/runs/{cell}/seed-{seed}/rounds.tsv"
            for cell, seeds in CELLS.items()
            for seed in seeds
            if (cell.head, cell.tuning) == (wildcards.head, wildcards.tuning)
        ],
        summaries=lambda wildcards: [
            f"results/runs/{cell}/seed-{seed}/summary.json"
            for cell, seeds in CELLS.items()
            for seed in seeds
            if (cell.head, cell.tuning) == (wildcards.head, wildcards.tuning)
        ],
    output:
        svg=report(
            "results/figures/learning_curves-{head}-{tuning}.svg",
            caption="report/learning_curves.rst",
            category="Training",
            labels={"figure": "loss by round", "head": "{head}", "tuning": "{tuning}"},
        ),
        png="results/figures/learning_curves-{head}-{tuning}.png",
    log:
        "results/logs/plot_learning_curves-{head}-{tuning}.log",
    benchmark:
        "results/benchmarks/plot_learning_curves-{head}-{tuning}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_learning_curves"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_learning_curves.py"),
        alarm=ALARM,
        cohorts=COHORTS,
        runs=lambda wildcards: [
            [cell.aggregation, seed]
            for cell, seeds in CELLS.items()
            for seed in seeds
            if (cell.head, cell.tuning) == (wildcards.head, wildcards.tuning)
        ],
    script:
        "../workflow_scripts/plot_learning_curves.py"


rule plot_roc_curves:
    input:
        predictions=[
            f"results/runs/{cell}/seed-{seed}/predictions.tsv"
            for cell, seeds in CELLS.items()
            for seed in seeds
            if cell.aggregation == study.drawn_aggregation(STUDY)
        ],
        splits="results/cohorts/splits.tsv",
        performance="results/evaluation/performance.tsv",
    output:
        svg=report(
            "results/figures/roc_curves.svg",
            caption="report/roc_curves.rst",
            category="Performance",
            labels={"figure": "ROC curves by head and tuning", "head": "all", "tuning": "all"},
        ),
        png="results/figures/roc_curves.png",
    log:
        "results/logs/plot_roc_curves.log",
    benchmark:
        "results/benchmarks/plot_roc_curves.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_roc_curves"),
        mem_mb=lambda wildcards, attempt: work.doubling(1500, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_roc_curves.py"),
        alarm=ALARM,
        cohorts=COHORTS,
        evaluation=RESAMPLING,
        runs=[
            [cell.head, cell.tuning, cell.aggregation, seed]
            for cell, seeds in CELLS.items()
            for seed in seeds
            if cell.aggregation == study.drawn_aggregation(STUDY)
        ],
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/plot_roc_curves.py"


rule plot_calibration_curves:
    input:
        calibration="results/evaluation/calibration.tsv",
        performance="results/evaluation/performance.tsv",
    output:
        svg=report(
            "results/figures/calibration_curves.svg",
            caption="report/calibration_curves.rst",
            category="Performance",
            labels={"figure": "calibration curves", "head": "all", "tuning": "all"},
        ),
        png="results/figures/calibration_curves.png",
    log:
        "results/logs/plot_calibration_curves.log",
    benchmark:
        "results/benchmarks/plot_calibration_curves.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_calibration_curves"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_calibration_curves.py"),
        alarm=ALARM,
        aggregation=study.drawn_aggregation(STUDY),
        level=STUDY["evaluation"]["level"],
    script:
        "../workflow_scripts/plot_calibration_curves.py"


rule plot_auc_by_cost:
    input:
        performance="results/evaluation/performance.tsv",
        efficiency="results/evaluation/efficiency.tsv",
    output:
        svg=report(
            "results/figures/auc_by_cost.svg",
            caption="report/auc_by_cost.rst",
            category="Performance",
            labels={"figure": "AUC by bytes sent", "head": "all", "tuning": "all"},
        ),
        png="results/figures/auc_by_cost.png",
    log:
        "results/logs/plot_auc_by_cost.log",
    benchmark:
        "results/benchmarks/plot_auc_by_cost.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_auc_by_cost"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_auc_by_cost.py"),
        alarm=ALARM,
        level=STUDY["evaluation"]["level"],
    script:
        "../workflow_scripts/plot_auc_by_cost.py"


rule plot_communication:
    input:
        efficiency="results/evaluation/efficiency.tsv",
    output:
        svg=report(
            "results/figures/communication.svg",
            caption="report/communication.rst",
            category="Performance",
            labels={"figure": "parameters and bytes sent", "head": "all", "tuning": "all"},
        ),
        png="results/figures/communication.png",
    log:
        "results/logs/plot_communication.log",
    benchmark:
        "results/benchmarks/plot_communication.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_communication"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_communication.py"),
        alarm=ALARM,
    script:
        "../workflow_scripts/plot_communication.py"


rule plot_auc_table:
    input:
        performance="results/evaluation/performance.tsv",
    output:
        svg=report(
            "results/figures/auc_table.svg",
            caption="report/auc_table.rst",
            category="Performance",
            labels={"figure": "AUC of every cell and client", "head": "all", "tuning": "all"},
        ),
        png="results/figures/auc_table.png",
    log:
        "results/logs/plot_auc_table.log",
    benchmark:
        "results/benchmarks/plot_auc_table.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_auc_table"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_auc_table.py"),
        alarm=ALARM,
        cohorts=COHORTS,
    script:
        "../workflow_scripts/plot_auc_table.py"


rule plot_site_effects:
    input:
        told="results/site_effects/{encoder}/cohort_told.tsv",
        variance="results/site_effects/{encoder}/variance.tsv",
        projection="results/site_effects/{encoder}/projection.tsv",
    output:
        svg=report(
            "results/figures/site_effects-{encoder}.svg",
            caption="report/site_effects.rst",
            category="Data",
            labels={"figure": "site effects in embeddings of {encoder}"},
        ),
        png="results/figures/site_effects-{encoder}.png",
    log:
        "results/logs/plot_site_effects-{encoder}.log",
    benchmark:
        "results/benchmarks/plot_site_effects-{encoder}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_site_effects"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_site_effects.py"),
        alarm=lambda wildcards: UNTRAINED if weights_of(wildcards.encoder) == "random" else None,
        cohorts=COHORTS,
        class_names=STUDY["class_names"],
        level=STUDY["evaluation"]["level"],
    script:
        "../workflow_scripts/plot_site_effects.py"


rule plot_explanation:
    input:
        table=f"{EXPLAINED}/explanation.tsv",
        randomisation=f"{EXPLAINED}/randomisation.tsv",
        maps=GROUP_MAPS,
    output:
        svg=report(
            "results/figures/explanation-{head}-{tuning}-{aggregation}.svg",
            caption="report/explanation.rst",
            category="Explanation",
            labels={"figure": "explanation maps, {aggregation}", "head": "{head}", "tuning": "{tuning}"},
        ),
        png="results/figures/explanation-{head}-{tuning}-{aggregation}.png",
    log:
        "results/logs/plot_explanation-{head}-{tuning}-{aggregation}.log",
    benchmark:
        "results/benchmarks/plot_explanation-{head}-{tuning}-{aggregation}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_explanation"),
        mem_mb=lambda wildcards, attempt: work.doubling(1500, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_explanation.py"),
        alarm=lambda wildcards: UNTRAINED if (explained_encoder(wildcards) or {}).get("weights") == "random" else None,
        methods=EXPLANATION["methods"],
        class_names=STUDY["class_names"],
        baseline=EXPLANATION["baseline"],
    script:
        "../workflow_scripts/plot_explanation.py"


rule plot_membership:
    input:
        curves="results/evaluation/membership_curves.tsv",
        privacy="results/evaluation/privacy.tsv",
    output:
        svg=report(
            "results/figures/membership.svg",
            caption="report/membership.rst",
            category="Privacy",
            labels={"figure": "membership inference", "head": "all", "tuning": "all"},
        ),
        png="results/figures/membership.png",
    log:
        "results/logs/plot_membership.log",
    benchmark:
        "results/benchmarks/plot_membership.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("plot_membership"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("plot_membership.py"),
        alarm=ALARM,
        cohorts=COHORTS,
        level=STUDY["evaluation"]["level"],
    script:
        "../workflow_scripts/plot_membership.py"
