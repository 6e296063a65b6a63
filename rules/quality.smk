# Quality control: what stands out in a cohort, and one page on which to look at all of its scans.


rule assess_quality:
    input:
        volumes=lambda wildcards: shards("results/volumes/{cohort}/{shard}.tsv", wildcards.cohort),
    output:
        table="results/quality/{cohort}.tsv",
    log:
        "results/logs/assess_quality/{cohort}.log",
    benchmark:
        "results/benchmarks/assess_quality/{cohort}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("assess_quality"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("assess_quality.py", "fedbrain.imaging.outliers"),
        outlier_z=STUDY["quality"]["outlier_z"],
        limits=dict(sorted(STUDY["quality"]["limits"].items())),
        drop=STUDY["quality"]["drop"],
    script:
        "../workflow_scripts/assess_quality.py"


# The snapshots lie with the volumes and are, as those, no declared files. The page holds subject ids and pictures of heads,
# which report.html does not; so it is part of that only where the config says so.
rule quality_page:
    input:
        table="results/quality/{cohort}.tsv",
        look=[
            beside("src", "fedbrain", "report", f"{name}.{kind}")
            for name in ("base", "quality_page")
            for kind in ("css", "js")
        ],
    output:
        page=(
            report(
                "results/quality/{cohort}.html",
                caption="report/quality_page.rst",
                category="Quality",
                labels={"page": "scans of a cohort", "cohort": "{cohort}"},
            )
            if STUDY["quality"]["in_report"]
            else "results/quality/{cohort}.html"
        ),
    log:
        "results/logs/quality_page/{cohort}.log",
    benchmark:
        "results/benchmarks/quality_page/{cohort}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("quality_page"),
        mem_mb=lambda wildcards, attempt: work.doubling(1000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5, attempt),
    params:
        code=code("quality_page.py", "fedbrain.imaging.outliers"),
        title=STUDY["title"],
        quality={key: STUDY["quality"][key] for key in ("outlier_z", "drop")}
        | {"limits": dict(sorted(STUDY["quality"]["limits"].items()))},
        exclude=lambda wildcards: STUDY["cohorts"][wildcards.cohort]["exclude"],
        volumes=lambda wildcards: f"results/volumes/{wildcards.cohort}",
    script:
        "../workflow_scripts/quality_page.py"
