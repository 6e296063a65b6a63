"""Lays the volumes of one cohort out as a BIDS derivative data set."""

from pathlib import Path

from fedbrain.imaging.bids_export import export_cohort
from fedbrain.logs import log_to
from fedbrain.tables import SCANS, VOLUMES, read_table

log_to(snakemake.log[0])
export_cohort(
    snakemake.output.folder,
    read_table(snakemake.input.scans, SCANS),
    {Path(path).with_suffix(""): read_table(path, VOLUMES) for path in snakemake.input.volumes},
    cohort=snakemake.wildcards.cohort,
    title=snakemake.params.title,
    raw=snakemake.params.raw,
)
