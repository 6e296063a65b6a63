"""Runs the frozen part of the encoder over the volumes of one shard."""

import json

from fedbrain.devices import pick_device, set_threads
from fedbrain.logs import log_to

log_to(snakemake.log[0])
set_threads(snakemake.threads)

from fedbrain.models.embeddings import embed_shard  # noqa: E402
from fedbrain.tables import VOLUMES, read_table, write_text  # noqa: E402

encoder = snakemake.params.encoder or {}  # none for volumes
summary = embed_shard(
    read_table(snakemake.input.table, VOLUMES),
    snakemake.params.folder,
    snakemake.output.embeddings,
    cut=snakemake.wildcards.cut,
    device=pick_device(snakemake.resources.gpu),
    batch_size=snakemake.resources.batch,
    **{key: value for key, value in encoder.items() if key != "sha256"},
)
write_text(json.dumps(summary, indent=1) + "\n", snakemake.output.summary)
