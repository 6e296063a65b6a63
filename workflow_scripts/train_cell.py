"""Trains one cell of the grid with one seed."""

from pathlib import Path

from fedbrain.devices import keep_freed_memory, pick_device, set_threads
from fedbrain.logs import log_to

log_to(snakemake.log[0])
set_threads(snakemake.threads)
keep_freed_memory()

from fedbrain.federated.cell import train_cell  # noqa: E402
from fedbrain.federated.data import leave_out, load_clients  # noqa: E402
from fedbrain.models.classifier import EncoderSource  # noqa: E402
from fedbrain.registry import lookup  # noqa: E402
from fedbrain.tables import SCANS, SPLITS, by_cohort, read_table  # noqa: E402

cohorts = snakemake.params.cohorts
clients = load_clients(
    embeddings=by_cohort(snakemake.input.embeddings, cohorts),
    scans=dict(zip(cohorts, snakemake.input.scans)),
    splits=snakemake.input.splits,
    dropped=snakemake.input.dropped,
)
if left_out := snakemake.wildcards.get("left_out"):
    clients = leave_out(clients, left_out, read_table(snakemake.input.splits, SPLITS))
if snakemake.input.harmonization:
    harmonization = lookup("harmonization", snakemake.params.tuning["harmonization"])
    tables = {cohort: read_table(path, SCANS) for cohort, path in zip(cohorts, snakemake.input.scans)}
    clients = harmonization.read(snakemake.input.harmonization).apply(clients, tables)
train_cell(
    clients,
    head=snakemake.wildcards.head,
    tuning=snakemake.wildcards.tuning,
    aggregation=snakemake.wildcards.aggregation,
    head_options=snakemake.params.head,
    tuning_options=snakemake.params.tuning,
    aggregation_options=snakemake.params.aggregation,
    training=snakemake.params.training,
    source=EncoderSource.of(snakemake.params.encoder),
    seed=int(snakemake.wildcards.seed),
    code=snakemake.params.code,
    folder=Path(snakemake.output.summary).parent,
    device=pick_device(snakemake.resources.gpu),
)
