"""Turns the scans of one shard into normalized brain volumes in MNI space."""

from pathlib import Path

from fedbrain.devices import keep_freed_memory, pick_device, set_threads
from fedbrain.logs import log_to

log_to(snakemake.log[0])
set_threads(snakemake.threads)  # before antspyx is imported, which reads the number once
keep_freed_memory()

from fedbrain.imaging.shard import preprocess_shard  # noqa: E402
from fedbrain.tables import MANIFEST, read_table, write_table  # noqa: E402

table, intensity = preprocess_shard(
    read_table(snakemake.input.manifest, MANIFEST),
    Path(snakemake.params.folder),
    dict(snakemake.params.recipe),
    cohort=snakemake.wildcards.cohort,
    device=pick_device(snakemake.resources.gpu),
)
write_table(intensity, snakemake.output.intensity)
write_table(table, snakemake.output.table)
