"""Fits what adjusts the clients' embeddings to each other, on their training subjects."""

from fedbrain.federated.data import leave_out, load_clients
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.registry import lookup
from fedbrain.tables import SCANS, SPLITS, by_cohort, read_table, write_table

log_to(snakemake.log[0])
cohorts, asked = snakemake.params.cohorts, snakemake.params.harmonization
clients = load_clients(
    embeddings=by_cohort(snakemake.input.embeddings, cohorts),
    scans=dict(zip(cohorts, snakemake.input.scans)),
    splits=snakemake.input.splits,
    dropped=snakemake.input.dropped,
)
unseen = list(asked.get("unseen", ()))
if left_out := snakemake.wildcards.get("left_out"):
    clients = leave_out(clients, left_out, read_table(snakemake.input.splits, SPLITS))
    unseen.append(left_out)
scans = {cohort: read_table(path, SCANS) for cohort, path in zip(cohorts, snakemake.input.scans)}
harmonization, table = lookup("harmonization", asked["name"]).fit(
    clients, scans, covariates=asked["covariates"], unseen=unseen
)
harmonization.write(snakemake.output.parameters)
write_table(table, snakemake.output.clients)
write_provenance(
    snakemake.output.provenance,
    packages=("numpy", "torch"),
    parameters=dict(asked) | {"unseen": unseen},
    inputs={
        path: sha256_of(path) for path in [*snakemake.input.summaries, *snakemake.input.scans, snakemake.input.splits]
    },
)
print(table.to_string(index=False))
