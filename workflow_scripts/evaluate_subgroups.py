"""Measures every cell by sex, age band, site and scanner, and the differences between groups."""

from fedbrain.cohorts.scanners import with_scanners
from fedbrain.evaluation.predictions import read_runs
from fedbrain.evaluation.subgroups import subgroups
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.tables import CONVERSIONS, SCANNERS, SCANS, SPLITS, by_cohort, concatenate, read_table, write_table

log_to(snakemake.log[0])
cohorts = snakemake.params.cohorts
shards = by_cohort(snakemake.input.nifti, cohorts)
conversions = {cohort: concatenate(paths, CONVERSIONS) for cohort, paths in shards.items()}
result = subgroups(
    read_runs(snakemake.params.runs, snakemake.input.predictions),
    {
        cohort: with_scanners(read_table(path, SCANS), read_table(scanners, SCANNERS), conversions[cohort])
        for cohort, path, scanners in zip(cohorts, snakemake.input.scans, snakemake.input.scanners)
    },
    clients=cohorts,
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
        path: sha256_of(path)
        for path in [
            *snakemake.input.predictions,
            *snakemake.input.scans,
            *snakemake.input.scanners,
            *snakemake.input.nifti,
            snakemake.input.splits,
        ]
    },
)
