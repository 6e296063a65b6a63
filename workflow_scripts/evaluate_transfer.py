"""Measures every cell on the cohorts that it has never seen, beside the models that have."""

from fedbrain.evaluation.predictions import read_runs
from fedbrain.evaluation.transfer import transfer
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.tables import SPLITS, read_table, write_table

log_to(snakemake.log[0])
listed = list(zip(snakemake.params.without, snakemake.input.without))
without = {}
for left_out in dict.fromkeys(run[3] for run, _ in listed):
    mine = [((*run[:3], run[4]), path) for run, path in listed if run[3] == left_out]
    without[left_out] = read_runs(*zip(*mine))
result = transfer(
    read_runs(snakemake.params.runs, snakemake.input.predictions),
    without,
    read_table(snakemake.input.splits, SPLITS),
    clients=snakemake.params.cohorts,
    external=snakemake.params.external,
    seed=snakemake.params.seed,
    **snakemake.params.evaluation,
)
write_table(result, snakemake.output.table)
inputs = [*snakemake.input.predictions, *snakemake.input.without, snakemake.input.splits]
write_provenance(
    snakemake.output.provenance,
    packages=("numpy", "pandas", "scipy"),
    parameters=dict(snakemake.params.evaluation) | {"seed": snakemake.params.seed},
    inputs={path: sha256_of(path) for path in inputs},
)
