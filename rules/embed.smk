# From volumes to what training starts from: the frozen part of the encoder runs once over each scan.


# `update`: the embeddings of a shard are kept when the job starts, so that only changed scans are embedded again. The
# small summary carries their checksum; it is what training compares, since the arrays are too large for Snakemake to.
rule embed_shard:
    input:
        table=f"{NORMALIZED}.tsv",
        weights=lambda wildcards: weights_file(weights_of(wildcards.encoder)),
    output:
        embeddings=update(f"{KEPT_FILES}.safetensors"),
        summary=f"{KEPT_FILES}.json",
    log:
        "results/logs/embed_shard/{encoder}-{cut}-{cohort}-{shard}.log",
    benchmark:
        "results/benchmarks/embed_shard/{encoder}-{cut}-{cohort}-{shard}.tsv"
    conda:
        ENVIRONMENT
    threads: cpu_threads("embed_shard")
    resources:
        gpu=gpu("embed_shard"),
        mem_mb=lambda wildcards, attempt: at_most(
            "mem_mb",
            work.embed_memory(wildcards.cut, STUDY["encoder"]["batch_size"], attempt),
        ),
        runtime=lambda wildcards, attempt: at_most(
            "runtime", work.embed_minutes(scans_in(wildcards.cohort, wildcards.shard), attempt)
        ),
        batch=STUDY["encoder"]["batch_size"],  # here, where a change of it runs nothing again
    params:
        code=embedding_code,
        encoder=embedding_params,
        folder=lambda wildcards: NORMALIZED.format(cohort=wildcards.cohort, shard=wildcards.shard),
    script:
        "../workflow_scripts/embed_shard.py"
