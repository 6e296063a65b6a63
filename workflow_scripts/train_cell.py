"""Trains runs of the grid, a cell with a seed each, that share what they load; as a rule there is one."""

from functools import partial
from pathlib import Path

from fedbrain.devices import keep_freed_memory, pick_device, set_threads
from fedbrain.logs import log_to

log_to(snakemake.log[0])
set_threads(snakemake.threads)
keep_freed_memory()

from fedbrain.federated.batch import train_runs  # noqa: E402
from fedbrain.federated.cell import train_cell  # noqa: E402
from fedbrain.federated.data import leave_out, load_clients  # noqa: E402
from fedbrain.models.classifier import EncoderSource  # noqa: E402
from fedbrain.registry import lookup  # noqa: E402
from fedbrain.tables import SCANS, SPLITS, by_cohort, read_table  # noqa: E402

cohorts = snakemake.params.cohorts
everybody = load_clients(
    embeddings=by_cohort(snakemake.input.embeddings, cohorts),
    scans=dict(zip(cohorts, snakemake.input.scans)),
    splits=snakemake.input.splits,
    dropped=snakemake.input.dropped,
)
tables = {cohort: read_table(path, SCANS) for cohort, path in zip(cohorts, snakemake.input.scans)}


def clients_of(run):
    """The clients as one run sees them."""
    clients = everybody
    if run["left_out"]:
        clients = leave_out(clients, run["left_out"], read_table(snakemake.input.splits, SPLITS))
    if snakemake.input.harmonization:
        harmonization = lookup("harmonization", run["options"]["tuning"]["harmonization"])
        clients = harmonization.read(snakemake.input.harmonization).apply(clients, tables)
    return clients


def train(run, code):
    """One cell with one seed."""
    train_cell(
        clients_of(run),
        head=run["head"],
        tuning=run["tuning"],
        aggregation=run["aggregation"],
        head_options=run["options"]["head"],
        tuning_options=run["options"]["tuning"],
        aggregation_options=run["options"]["aggregation"],
        training=run["training"],
        source=EncoderSource.of(run["encoder"]),
        seed=run["seed"],
        code=code,
        folder=Path(run["folder"]),
        device=pick_device(snakemake.resources.gpu),
    )


train_runs(
    (run["folder"], Path(run["folder"]), partial(train, run, code))
    for run, code in zip(snakemake.params.runs, snakemake.params.code)
)
