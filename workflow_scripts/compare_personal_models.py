"""Compares the clients' own models with the global one, with training alone and with training on pooled data."""

from fedbrain.evaluation.personalisation import personalisation
from fedbrain.evaluation.predictions import read_runs
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.tables import SPLITS, read_table, write_table

log_to(snakemake.log[0])
options = dict(snakemake.params.evaluation) | {"family": snakemake.params.family, "seed": snakemake.params.seed}
result = personalisation(
    read_runs(snakemake.params.runs, snakemake.input.predictions),
    {tuple(cell): tuple(common) if common else None for cell, common in snakemake.params.personal},
    clients=snakemake.params.cohorts,
    splits=read_table(snakemake.input.splits, SPLITS),
    own_models=snakemake.params.own_models,
    **options,
)
write_table(result, snakemake.output.table)
write_provenance(
    snakemake.output.provenance,
    packages=("numpy", "pandas", "scipy"),
    parameters=options,
    inputs={path: sha256_of(path) for path in [*snakemake.input.predictions, snakemake.input.splits]},
)
