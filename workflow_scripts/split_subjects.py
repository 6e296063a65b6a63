"""Deals the subjects of all cohorts out to training, validation and test."""

import json
from pathlib import Path

import pandas as pd

from fedbrain.cohorts.splits import (
    assert_no_leakage,
    digest_of_dropped,
    find_duplicates,
    known_elsewhere,
    split_subjects,
)
from fedbrain.imaging.outliers import assess, dropped_scans, read_shards
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.tables import SCANS, VOLUMES, by_cohort, concatenate, read_table, write_table

log_to(snakemake.log[0])
scans = {cohort: read_table(path, SCANS) for cohort, path in zip(snakemake.params.cohorts, snakemake.input.scans)}
shards = by_cohort(snakemake.input.volumes, snakemake.params.cohorts)
volumes = {cohort: concatenate(paths, VOLUMES) for cohort, paths in shards.items()}
settings = json.loads(Path(snakemake.input.study).read_text(encoding="utf-8"))["study"]["quality"]
dropped = dropped_scans({cohort: assess(read_shards(paths), settings) for cohort, paths in shards.items()})
of_cohorts = {cohort: set(table["scan"]) for cohort, table in dropped.groupby("cohort")}
asked = snakemake.params.splits
splits = split_subjects(scans, volumes, seed=snakemake.params.seed, dropped=of_cohorts, **asked)
assert_no_leakage(splits)
known = known_elsewhere(
    scans, volumes, link_ids=asked["link_ids"], external=asked.get("external", ()), dropped=of_cohorts
)
write_table(pd.concat([dropped, known]), snakemake.output.dropped)
write_table(splits, snakemake.output.splits)
duplicates = find_duplicates(scans, volumes)
write_table(duplicates, snakemake.output.duplicates)
write_provenance(
    snakemake.output.provenance,
    packages=("pandas",),
    parameters=dict(asked)
    | {"seed": snakemake.params.seed, "dropping": snakemake.params.dropping, "dropped": digest_of_dropped(dropped)},
    inputs={path: sha256_of(path) for path in [*snakemake.input.scans, *snakemake.input.volumes]},
)
print(splits.groupby(["cohort", "label", "split"]).size().to_string())
if len(known):
    print(known.groupby(["cohort", "reason"]).size().to_string())
if len(duplicates):
    print(f"{duplicates['image'].nunique()} images occur more than once ({len(duplicates)} scans)")
