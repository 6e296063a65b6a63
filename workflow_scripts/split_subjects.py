"""Deals the subjects of all cohorts out to training, validation and test."""

from pathlib import Path

from fedbrain.cohorts.splits import assert_no_leakage, split_subjects
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.tables import SCANS, VOLUMES, concatenate, read_table, write_table

log_to(snakemake.log[0])
scans = {cohort: read_table(path, SCANS) for cohort, path in zip(snakemake.params.cohorts, snakemake.input.scans)}
volumes = {
    cohort: concatenate([path for path in snakemake.input.volumes if Path(path).parent.name == cohort], VOLUMES)
    for cohort in snakemake.params.cohorts
}
splits = split_subjects(scans, volumes, seed=snakemake.params.seed, **snakemake.params.splits)
assert_no_leakage(splits)
write_table(splits, snakemake.output.splits)
write_provenance(
    snakemake.output.provenance,
    packages=("pandas",),
    parameters=dict(snakemake.params.splits) | {"seed": snakemake.params.seed},
    inputs={path: sha256_of(path) for path in [*snakemake.input.scans, *snakemake.input.volumes]},
)
print(splits.groupby(["cohort", "label", "split"]).size().to_string())
