"""Measures how well the cohort can be told from embeddings, from the quality of scans, and from age and sex."""

import numpy as np
import pandas as pd

from fedbrain.evaluation.predictions import with_persons
from fedbrain.evaluation.site_effects import NONE, site_effects, site_projection, site_variance
from fedbrain.federated.data import SIDES, load_clients
from fedbrain.federated.harmonization import channel_features
from fedbrain.imaging.quality import COLUMNS
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.registry import lookup
from fedbrain.tables import SCANS, SPLITS, VOLUMES, by_cohort, concatenate, read_table, write_table

log_to(snakemake.log[0])
cohorts = snakemake.params.cohorts
clients = load_clients(
    embeddings=by_cohort(snakemake.input.embeddings, cohorts),
    scans=dict(zip(cohorts, snakemake.input.scans)),
    splits=snakemake.input.splits,
    dropped=snakemake.input.dropped,
)
tables = {cohort: read_table(path, SCANS) for cohort, path in zip(cohorts, snakemake.input.scans)}

# One row per scan, in one order for all features: by cohort, side and scan.
scans = pd.concat(
    [
        pd.DataFrame({"cohort": cohort, "subject": side.subjects, "scan": side.scans, "label": side.y.numpy()}).assign(
            split=name
        )
        for cohort in cohorts
        for name in SIDES
        for side in [getattr(clients[cohort], name)]
    ],
    ignore_index=True,
)
scans = with_persons(scans, read_table(snakemake.input.splits, SPLITS))


def embedded(of):
    """Features by name, (N, C) each."""
    sides = [getattr(of[cohort], name) for cohort in cohorts for name in SIDES]
    means, spreads = zip(*(channel_features(side.x) for side in sides if len(side)))
    return {"mean": np.concatenate(means), "spread": np.concatenate(spreads)}


def beside(frames, columns):
    """Columns of a table of each cohort, in the order of ``scans``, (N, columns)."""
    table = pd.concat([frame.assign(cohort=cohort) for cohort, frame in frames.items()])
    found = scans[["cohort", "scan"]].merge(table, on=["cohort", "scan"], how="left", validate="1:1")
    return found[list(columns)].astype("Float64").to_numpy(float, na_value=np.nan)


features = {(name, NONE): values for name, values in embedded(clients).items()}
for (tuning, method), path in zip(snakemake.params.harmonizations.items(), snakemake.input.harmonizations):
    harmonized = lookup("harmonization", method).read(path).apply(clients, tables)
    features["mean", tuning] = embedded(harmonized)["mean"]  # the spread over the positions stays as it was
shards = by_cohort(snakemake.input.volumes, cohorts)
volumes = {cohort: concatenate(paths, VOLUMES) for cohort, paths in shards.items()}
features["quality", NONE] = beside(volumes, COLUMNS)
people = {cohort: table.assign(sex=table["sex"].map({"F": 1.0, "M": 0.0})) for cohort, table in tables.items()}
features["age and sex", NONE] = beside(people, ("age", "sex"))

told = site_effects(features, scans, cohorts=cohorts, seed=snakemake.params.seed, **snakemake.params.evaluation)
write_table(told, snakemake.output.told)
of_embeddings = {key: values for key, values in features.items() if key[0] in ("mean", "spread")}
write_table(site_variance(of_embeddings, scans), snakemake.output.variance)
means = {harmonization: values for (name, harmonization), values in features.items() if name == "mean"}
write_table(site_projection(means, scans), snakemake.output.projection)
write_provenance(
    snakemake.output.provenance,
    packages=("numpy", "pandas", "scikit-learn"),
    parameters=dict(snakemake.params.evaluation)
    | {"seed": snakemake.params.seed, "harmonizations": dict(snakemake.params.harmonizations)},
    inputs={
        path: sha256_of(path)
        for path in [
            *snakemake.input.summaries,
            *snakemake.input.harmonizations,
            *snakemake.input.volumes,
            *snakemake.input.scans,
            snakemake.input.splits,
        ]
    },
)
