"""Brings the volumes of one shard onto a standard scale of intensity."""

import json
from pathlib import Path

from fedbrain.devices import set_threads
from fedbrain.logs import log_to

log_to(snakemake.log[0])
set_threads(snakemake.threads)

from fedbrain.imaging.standardize import standardize_shard  # noqa: E402
from fedbrain.tables import VOLUMES, read_table, write_table  # noqa: E402

table, intensity = standardize_shard(
    read_table(snakemake.input.table, VOLUMES),
    snakemake.params.source,
    snakemake.params.folder,
    json.loads(Path(snakemake.input.scale).read_text()),
    cohort=snakemake.wildcards.cohort,
)
write_table(intensity, snakemake.output.intensity)
write_table(table, snakemake.output.table)
