# From volumes to embeddings: the frozen encoder runs once over each scan.


# `update`: the embeddings of a shard are kept when the job starts, so that only changed scans are embedded again. The
# small summary carries their checksum; it is what training compares, since the arrays are too large for Snakemake to.
rule embed_shard:
    input:
        table="results/volumes/{cohort}/{shard}.tsv",
        weights=[] if STUDY["encoder"]["weights"] == "random" else ancient(STUDY["encoder"]["weights"]),
    output:
        embeddings=update(f"results/embeddings/{ENCODER}/{CUT}/{{cohort}}/{{shard}}.safetensors"),
        summary=f"results/embeddings/{ENCODER}/{CUT}/{{cohort}}/{{shard}}.json",
    log:
        f"results/logs/embed_shard/{ENCODER}-{CUT}-{{cohort}}-{{shard}}.log",
    benchmark:
        f"results/benchmarks/embed_shard/{ENCODER}-{CUT}-{{cohort}}-{{shard}}.tsv"
    conda:
        ENVIRONMENT
    threads: cpu_threads("embed_shard")
    resources:
        gpu=gpu("embed_shard"),
        mem_mb=lambda wildcards, attempt: work.embed_memory(
            scans_in(wildcards.cohort, wildcards.shard), STUDY["encoder"]["batch_size"], attempt
        ),
        runtime=lambda wildcards, attempt: work.embed_minutes(scans_in(wildcards.cohort, wildcards.shard), attempt),
    params:
        code=code("embed_shard.py", registry.module_of("encoder", ENCODER)),
        encoder=ENCODER,
        weights=STUDY["encoder"]["weights"],
        sha256=WEIGHTS,
        batch_size=STUDY["encoder"]["batch_size"],
        folder=lambda wildcards: f"results/volumes/{wildcards.cohort}/{wildcards.shard}",
        seed=STUDY["seed"],
    script:
        "../workflow_scripts/embed_shard.py"
