"""Tabulates the calibration curve of every cell and seed."""

from fedbrain.evaluation.calibration import calibration_curves
from fedbrain.evaluation.predictions import read_runs
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.tables import SPLITS, read_table, write_table

log_to(snakemake.log[0])
result = calibration_curves(
    read_runs(snakemake.params.runs, snakemake.input.predictions),
    clients=snakemake.params.cohorts,
    splits=read_table(snakemake.input.splits, SPLITS),
    bins=snakemake.params.bins,
    level=snakemake.params.level,
    seed=snakemake.params.seed,
)
write_table(result, snakemake.output.table)
write_provenance(
    snakemake.output.provenance,
    packages=("numpy", "pandas", "scipy"),
    parameters={name: snakemake.params[name] for name in ("bins", "level", "seed")},
    inputs={path: sha256_of(path) for path in [*snakemake.input.predictions, snakemake.input.splits]},
)
