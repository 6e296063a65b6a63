"""Turns the scans of one shard into normalized brain volumes in MNI space."""

from pathlib import Path

from fedbrain.devices import keep_freed_memory, pick_device, set_threads
from fedbrain.logs import log_to

log_to(snakemake.log[0])
set_threads(snakemake.threads)  # before antspyx is imported, which reads the number once
keep_freed_memory()

from fedbrain.imaging.conversions import with_refused  # noqa: E402
from fedbrain.imaging.shard import preprocess_shard  # noqa: E402
from fedbrain.tables import CONVERSIONS, MANIFEST, concatenate, read_table, write_table  # noqa: E402

scans = read_table(snakemake.input.manifest, MANIFEST)
conversions = concatenate(snakemake.input.nifti, CONVERSIONS)
table, intensity = preprocess_shard(
    scans,
    Path(snakemake.params.folder),
    {**snakemake.params.recipe, "extractor_weights": snakemake.input.get("weights") or None},
    cohort=snakemake.wildcards.cohort,
    device=pick_device(snakemake.resources.gpu),
    unconverted=set(conversions.loc[conversions["status"] == "failed", "scan"]),
)
write_table(intensity, snakemake.output.intensity)
write_table(with_refused(table, scans, conversions), snakemake.output.table)
