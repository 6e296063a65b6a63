"""Measures every cell at a threshold chosen on its validation scans, beside the fixed one."""

from fedbrain.evaluation.predictions import read_runs
from fedbrain.evaluation.thresholds import performance_at_thresholds
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.tables import SPLITS, read_table, write_table

log_to(snakemake.log[0])
result = performance_at_thresholds(
    read_runs(snakemake.params.runs, snakemake.input.predictions),
    read_runs(snakemake.params.runs, snakemake.input.validation),
    clients=snakemake.params.cohorts,
    splits=read_table(snakemake.input.splits, SPLITS),
    seed=snakemake.params.seed,
    **snakemake.params.evaluation,
)
write_table(result, snakemake.output.table)
inputs = [*snakemake.input.predictions, *snakemake.input.validation, snakemake.input.splits]
write_provenance(
    snakemake.output.provenance,
    packages=("numpy", "pandas", "scipy"),
    parameters=dict(snakemake.params.evaluation) | {"seed": snakemake.params.seed},
    inputs={path: sha256_of(path) for path in inputs},
)
