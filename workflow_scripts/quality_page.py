"""Writes the page on which the scans of one cohort are looked at."""

from fedbrain.logs import log_to
from fedbrain.report.quality_page import quality_page
from fedbrain.tables import QUALITY, read_table, write_text

log_to(snakemake.log[0])
page = quality_page(
    read_table(snakemake.input.table, QUALITY),
    cohort=snakemake.wildcards.cohort,
    title=snakemake.params.title,
    settings=snakemake.params.quality,
    exclude=snakemake.params.exclude,
    volumes=snakemake.params.volumes,
)
write_text(page, snakemake.output.page)
