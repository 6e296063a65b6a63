"""Makes the explanation maps of a trained cell."""

from pathlib import Path

from fedbrain.devices import keep_freed_memory, pick_device, set_threads
from fedbrain.logs import log_to

log_to(snakemake.log[0])
set_threads(snakemake.threads)
keep_freed_memory()

from fedbrain.federated.explanation import ExplanationOptions, explain_cell  # noqa: E402
from fedbrain.models.classifier import EncoderSource  # noqa: E402
from fedbrain.provenance import sha256_of, write_provenance  # noqa: E402
from fedbrain.registry import lookup  # noqa: E402
from fedbrain.tables import PREDICTIONS, SCANS, read_table  # noqa: E402

params, harmonization = snakemake.params, None
if snakemake.input.harmonization:
    harmonization = lookup("harmonization", params.tuning["harmonization"]).read(snakemake.input.harmonization)
explain_cell(
    read_table(snakemake.input.predictions, PREDICTIONS),
    {cohort: read_table(path, SCANS) for cohort, path in zip(params.cohorts, snakemake.input.scans)},
    params.volumes,
    snakemake.input.model,
    head=snakemake.wildcards.head,
    tuning=snakemake.wildcards.tuning,
    aggregation=snakemake.wildcards.aggregation,
    head_options=params.head,
    tuning_options=params.tuning,
    aggregation_options=params.aggregation,
    source=EncoderSource.of(params.encoder),
    precisions=tuple(params.precisions),
    harmonization=harmonization,
    options=ExplanationOptions(**params.explanation),
    training_seed=params.training_seed,
    seed=params.seed,
    folder=Path(snakemake.output.table).parent,
    device=pick_device(snakemake.resources.gpu),
    batch_size=snakemake.resources.batch,
    code=params.code,
)
write_provenance(
    snakemake.output.provenance,
    packages=("torch", "monai", "peft", "numpy", "scipy"),
    parameters=dict(params.explanation) | {"seed": params.seed, "training_seed": params.training_seed},
    inputs={path: sha256_of(path) for path in (snakemake.input.predictions, snakemake.input.model)},
)
