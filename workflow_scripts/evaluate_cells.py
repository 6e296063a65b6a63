"""Measures every cell on the test subjects, with intervals, beside a classifier that knows the site alone."""

from fedbrain.evaluation.performance import performance
from fedbrain.evaluation.predictions import read_runs
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.tables import SPLITS, read_table, write_table

log_to(snakemake.log[0])
result = performance(
    read_runs(snakemake.params.runs, snakemake.input.predictions),
    clients=snakemake.params.cohorts,
    splits=read_table(snakemake.input.splits, SPLITS),
    seed=snakemake.params.seed,
    own_models=snakemake.params.own_models,
    **snakemake.params.evaluation,
)
write_table(result, snakemake.output.performance)
write_provenance(
    snakemake.output.provenance,
    packages=("numpy", "pandas", "scipy"),
    parameters=dict(snakemake.params.evaluation) | {"seed": snakemake.params.seed},
    inputs={path: sha256_of(path) for path in [*snakemake.input.predictions, snakemake.input.splits]},
)
