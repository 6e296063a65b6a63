"""Writes the simulated scans of one shard, and a scan table of them."""

from pathlib import Path

from fedbrain.cohorts.intake import scan_id
from fedbrain.cohorts.phantom import plan_cohort, write_cohort
from fedbrain.devices import keep_freed_memory, set_threads
from fedbrain.logs import log_to
from fedbrain.tables import MANIFEST, read_table, write_table

log_to(snakemake.log[0])
set_threads(snakemake.threads)
keep_freed_memory()
cohort = snakemake.wildcards.cohort
options, seed = snakemake.params.options, snakemake.params.seed
folder = Path(snakemake.output.table).parent
plan = plan_cohort(cohort, options, seed)
wanted = set(read_table(snakemake.input.manifest, MANIFEST)["scan"])
rows = plan[[scan_id(subject, session) in wanted for subject, session in zip(plan["subject"], plan["session"])]]
write_cohort(cohort, options, seed, folder, rows=rows)
write_table(rows, snakemake.output.table)
