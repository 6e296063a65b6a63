# Whether it can be told of a subject that a cell was trained on it; only for the cells that the config names.

from fedbrain.evaluation.settings import audited_cells

MEMBERS = "results/privacy/{head}/{tuning}/{aggregation}/seed-{seed}/{attacked}.tsv"
# A wrong cell is told now, not after the training. The first seed of each: a model that is released is one model.
AUDITED = [
    [*cell, CELLS[study.Cell(*cell)][0]]
    for cell in audited_cells(
        STUDY["evaluation"]["privacy"]["cells"], [(cell.head, cell.tuning, cell.aggregation) for cell in CELLS]
    )
]
ATTACKED = [dict(zip(("head", "tuning", "aggregation", "seed"), run)) for run in AUDITED]
SHADOWS = STUDY["evaluation"]["privacy"]["shadows"]
if AUDITED:
    EXTRA.append("results/evaluation/privacy.tsv")


wildcard_constraints:
    attacked=r"released|shadow-\d+",


# A shadow model is a training of the cell, so it depends on all that the cell does, and goes on where it was killed.
rule score_members:
    input:
        scans=expand("results/cohorts/{cohort}/scans.tsv", cohort=COHORTS),
        splits="results/cohorts/splits.tsv",
        dropped="results/cohorts/dropped.tsv",
        summaries=lambda wildcards: kept_files(wildcards, "json"),
        embeddings=ancient(lambda wildcards: kept_files(wildcards, "safetensors")),
        harmonization=harmonization_file,
        weights=lambda wildcards: weights_file(trained_weights(wildcards)),
        run=lambda wildcards: (
            [f"{folder_of(wildcards)}/{name}" for name in ("model.safetensors", "summary.json")]
            if wildcards.attacked == "released"
            else []
        ),
    output:
        MEMBERS,
    log:
        "results/logs/score_members/{head}-{tuning}-{aggregation}-{seed}-{attacked}.log",
    benchmark:
        "results/benchmarks/score_members/{head}-{tuning}-{aggregation}-{seed}-{attacked}.tsv"
    conda:
        ENVIRONMENT
    threads: cpu_threads("train_cell")
    resources:
        gpu=gpu("score_members"),
        mem_mb=lambda wildcards, attempt: at_most("mem_mb", work.train_memory(cell_work(wildcards), attempt)),
        runtime=lambda wildcards, attempt: at_most("runtime", work.train_minutes(cell_work(wildcards), attempt)),
    params:
        code=code("score_members.py"),
        cell_code=cell_code,
        cohorts=COHORTS,
        run=settings_of,
        shadow=lambda wildcards: (
            None if wildcards.attacked == "released" else int(wildcards.attacked.removeprefix("shadow-"))
        ),
    script:
        "../workflow_scripts/score_members.py"


rule audit_privacy:
    input:
        released=[MEMBERS.format(**run, attacked="released") for run in ATTACKED],
        shadows=[MEMBERS.format(**run, attacked=f"shadow-{number}") for run in ATTACKED for number in range(SHADOWS)],
        splits="results/cohorts/splits.tsv",
    output:
        table=report(
            "results/evaluation/privacy.tsv",
            caption="report/privacy.rst",
            category="Tables",
            labels={"table": "membership inference"},
        ),
        curves="results/evaluation/membership_curves.tsv",
        provenance="results/evaluation/privacy.json",
    log:
        "results/logs/audit_privacy.log",
    benchmark:
        "results/benchmarks/audit_privacy.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("audit_privacy"),
        mem_mb=lambda wildcards, attempt: work.evaluate_memory(len(AUDITED), attempt),
        runtime=lambda wildcards, attempt: work.evaluate_minutes(len(AUDITED), attempt),
    params:
        code=code("audit_privacy.py"),
        cohorts=COHORTS,
        evaluation=RESAMPLING,
        runs=AUDITED,
        shadows=SHADOWS,
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/audit_privacy.py"
