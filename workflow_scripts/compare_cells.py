"""Compares the cells on the same test subjects, the classifier that knows the site alone among them."""

from fedbrain.evaluation.baseline import with_baseline
from fedbrain.evaluation.comparison import compare_cells
from fedbrain.evaluation.predictions import read_runs
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.tables import SPLITS, read_table, write_table

log_to(snakemake.log[0])
splits = read_table(snakemake.input.splits, SPLITS)
reference = snakemake.params.reference
result = compare_cells(
    with_baseline(read_runs(snakemake.params.runs, snakemake.input.predictions), splits),
    clients=snakemake.params.cohorts,
    reference=tuple(reference) if reference else None,
    family=snakemake.params.family,
    splits=splits,
    seed=snakemake.params.seed,
    own_models=snakemake.params.own_models,
    **snakemake.params.evaluation,
)
write_table(result, snakemake.output.table)
parameters = dict(snakemake.params.evaluation) | {"reference": reference, "family": snakemake.params.family}
write_provenance(
    snakemake.output.provenance,
    packages=("numpy", "pandas", "scipy"),
    parameters=parameters | {"seed": snakemake.params.seed},
    inputs={path: sha256_of(path) for path in [*snakemake.input.predictions, snakemake.input.splits]},
)
