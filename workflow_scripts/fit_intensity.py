"""Learns a cohort's standard scale of intensity from its training scans."""

import json
from pathlib import Path

from fedbrain.imaging.standardize import fit_scale
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.tables import DROPPED, SPLITS, VOLUMES, read_table, write_text

log_to(snakemake.log[0])
tables = snakemake.input.volumes
shards = [(read_table(path, VOLUMES), Path(path).with_suffix("")) for path in tables]
splits, dropped = read_table(snakemake.input.splits, SPLITS), read_table(snakemake.input.dropped, DROPPED)
scale = fit_scale(shards, splits, dropped, cohort=snakemake.wildcards.cohort)
write_text(json.dumps(scale, indent=1) + "\n", snakemake.output.scale)
write_provenance(
    snakemake.output.provenance,
    packages=("numpy", "pandas"),
    parameters={"method": snakemake.params.method},
    inputs={path: sha256_of(path) for path in [snakemake.input.splits, snakemake.input.dropped, *tables]},
)
print(f"fitted to {scale['scans']} scans of {scale['subjects']} training subjects")
