"""Runs the frozen part of the encoder over the volumes of one shard."""

import json

from fedbrain.devices import pick_device, set_threads
from fedbrain.logs import log_to

log_to(snakemake.log[0])
set_threads(snakemake.threads)

from fedbrain.models.embeddings import embed_shard  # noqa: E402
from fedbrain.tables import VOLUMES, read_table, write_text  # noqa: E402

summary = embed_shard(
    read_table(snakemake.input.table, VOLUMES),
    snakemake.params.folder,
    snakemake.output.embeddings,
    encoder=snakemake.params.encoder,
    cut=snakemake.wildcards.cut,
    weights=snakemake.params.weights,
    seed=snakemake.params.seed,
    device=pick_device(snakemake.resources.gpu),
    batch_size=snakemake.params.batch_size,
    precision=snakemake.params.precision,
)
write_text(json.dumps(summary, indent=1) + "\n", snakemake.output.summary)
