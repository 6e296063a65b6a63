"""Writes the simulated scans of one shard, and a scan table of them."""

import os

from fedbrain.cohorts.phantom import write_cohort
from fedbrain.devices import keep_freed_memory, set_threads
from fedbrain.logs import log_to
from fedbrain.tables import MANIFEST, SCANS, read_table, write_table

log_to(snakemake.log[0])
set_threads(snakemake.threads)
keep_freed_memory()
scans = read_table(snakemake.input.scans, SCANS)
rows = scans[scans["scan"].isin(read_table(snakemake.input.manifest, MANIFEST)["scan"])]
write_cohort(snakemake.wildcards.cohort, snakemake.params.look, snakemake.params.seed, ".", rows=rows)
folder = os.path.dirname(snakemake.output.table)
table = rows[["subject", "session", "path", "diagnosis", "age", "sex", "site"]]
write_table(table.assign(path=[os.path.relpath(path, folder) for path in table["path"]]), snakemake.output.table)
