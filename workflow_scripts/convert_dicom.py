"""Turns the DICOM folders of one shard into NIfTI files."""

from pathlib import Path

from fedbrain.cohorts.dicom import convert_shard
from fedbrain.logs import log_to
from fedbrain.tables import DICOM, read_table, write_table

log_to(snakemake.log[0])
table = convert_shard(
    read_table(snakemake.input.folders, DICOM),
    Path(snakemake.params.folder),
    dict(snakemake.params.t1w),
    cohort=snakemake.wildcards.cohort,
)
write_table(table, snakemake.output.table)
