# From folders of DICOM files to NIfTI, for cohorts whose scan table names such folders.


# Images are no declared outputs, as volumes are none: a shard keeps those of all folders that have not changed.
rule convert_dicom:
    input:
        folders="results/cohorts/{cohort}/dicom/{shard}.tsv",
    output:
        table="results/nifti/{cohort}/{shard}.tsv",
    log:
        "results/logs/convert_dicom/{cohort}-{shard}.log",
    benchmark:
        "results/benchmarks/convert_dicom/{cohort}-{shard}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=gpu("convert_dicom"),
        mem_mb=lambda wildcards, attempt: work.doubling(2000, attempt),
        runtime=lambda wildcards, attempt: work.doubling(5 + 0.5 * scans_in(wildcards.cohort, wildcards.shard), attempt),
    params:
        code=code("convert_dicom.py"),
        t1w=lambda wildcards: STUDY["cohorts"][wildcards.cohort]["t1w"],
        folder=lambda wildcards: f"results/nifti/{wildcards.cohort}/{wildcards.shard}",
    script:
        "../workflow_scripts/convert_dicom.py"
