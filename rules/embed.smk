# From volumes to what training starts from: the frozen part of the encoder runs once over each scan.


# `update`: the embeddings of a shard are kept when the job starts, so that only changed scans are embedded again. The
# small summary carries their checksum; it is what training compares, since the arrays are too large for Snakemake to.
rule embed_shard:
    input:
        table="results/volumes/{cohort}/{shard}.tsv",
        weights=lambda wildcards: weights_file(wildcards.encoder),
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
        mem_mb=lambda wildcards, attempt: work.embed_memory(
            wildcards.cut, scans_in(wildcards.cohort, wildcards.shard), STUDY["encoder"]["batch_size"], attempt
        ),
        runtime=lambda wildcards, attempt: work.embed_minutes(scans_in(wildcards.cohort, wildcards.shard), attempt),
    params:
        code=embedding_code,
        encoder=STUDY["encoder"]["name"],
        weights=lambda wildcards: weights_of(wildcards.encoder),
        sha256=lambda wildcards: WEIGHTS if weights_of(wildcards.encoder) != "random" else None,
        batch_size=STUDY["encoder"]["batch_size"],
        precision=STUDY["encoder"]["precision"],
        folder=lambda wildcards: f"results/volumes/{wildcards.cohort}/{wildcards.shard}",
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/embed_shard.py"
