"""The logits of members and non-members under a cell's model, or under a shadow model that is trained here for the purpose."""

import shutil
from pathlib import Path

from fedbrain.devices import keep_freed_memory, pick_device, set_threads
from fedbrain.logs import log_to

log_to(snakemake.log[0])
set_threads(snakemake.threads)
keep_freed_memory()

from fedbrain.federated.cell import train_cell  # noqa: E402
from fedbrain.federated.data import load_clients  # noqa: E402
from fedbrain.federated.shadows import member_logits, shadow_clients  # noqa: E402
from fedbrain.models.classifier import EncoderSource  # noqa: E402
from fedbrain.registry import lookup  # noqa: E402
from fedbrain.tables import SCANS, SPLITS, by_cohort, read_table, write_table  # noqa: E402

cohorts, run = snakemake.params.cohorts, snakemake.params.run
clients = load_clients(
    embeddings=by_cohort(snakemake.input.embeddings, cohorts),
    scans=dict(zip(cohorts, snakemake.input.scans)),
    splits=snakemake.input.splits,
    dropped=snakemake.input.dropped,
)
if snakemake.input.harmonization:
    harmonization = lookup("harmonization", run["options"]["tuning"]["harmonization"])
    tables = {cohort: read_table(path, SCANS) for cohort, path in zip(cohorts, snakemake.input.scans)}
    clients = harmonization.read(snakemake.input.harmonization).apply(clients, tables)
cell = {axis: run[axis] for axis in ("head", "tuning", "aggregation", "training", "seed")}
cell |= {f"{axis}_options": options for axis, options in run["options"].items()}
cell |= {"source": EncoderSource.of(run["encoder"]), "device": pick_device(snakemake.resources.gpu)}
folder, shadow = Path(run["folder"]), snakemake.params.shadow
if shadow is not None:
    folder = Path(snakemake.output[0]).with_suffix("")  # where a job that was killed goes on
    splits = read_table(snakemake.input.splits, SPLITS)
    clients = shadow_clients(clients, splits, shadow, run["seed"])
    train_cell(clients, folder=folder, code=snakemake.params.cell_code, **cell)
write_table(member_logits(clients, folder=folder, **cell), snakemake.output[0])
if shadow is not None:
    shutil.rmtree(folder)
