"""Measures every cell by sex, age band and site, and the differences between groups."""

from fedbrain.evaluation.predictions import read_runs
from fedbrain.evaluation.subgroups import subgroups
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.tables import SCANS, SPLITS, read_table, write_table

log_to(snakemake.log[0])
result = subgroups(
    read_runs(snakemake.params.runs, snakemake.input.predictions),
    {cohort: read_table(path, SCANS) for cohort, path in zip(snakemake.params.cohorts, snakemake.input.scans)},
    clients=snakemake.params.cohorts,
    splits=read_table(snakemake.input.splits, SPLITS),
    attributes=snakemake.params.attributes,
    age_edges=snakemake.params.age_edges,
    seed=snakemake.params.seed,
    **snakemake.params.evaluation,
)
write_table(result, snakemake.output.table)
parameters = {name: snakemake.params[name] for name in ("attributes", "age_edges", "seed")}
write_provenance(
    snakemake.output.provenance,
    packages=("numpy", "pandas", "scipy"),
    parameters=parameters | dict(snakemake.params.evaluation),
    inputs={
        path: sha256_of(path) for path in [*snakemake.input.predictions, *snakemake.input.scans, snakemake.input.splits]
    },
)
