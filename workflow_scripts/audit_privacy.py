"""Attacks the audited cells: who of the subjects was trained on?"""

from fedbrain.evaluation.privacy import privacy
from fedbrain.logs import log_to
from fedbrain.provenance import sha256_of, write_provenance
from fedbrain.tables import MEMBERS, SPLITS, read_table, write_table

log_to(snakemake.log[0])
shadows = iter(snakemake.input.shadows)
released, under_shadows = {}, {}
for (head, tuning, aggregation, seed), path in zip(snakemake.params.runs, snakemake.input.released):
    run = (head, tuning, aggregation), seed
    released[run] = read_table(path, MEMBERS)
    under_shadows[run] = [read_table(next(shadows), MEMBERS) for _ in range(snakemake.params.shadows)]
table, curves = privacy(
    released,
    under_shadows,
    clients=snakemake.params.cohorts,
    splits=read_table(snakemake.input.splits, SPLITS),
    seed=snakemake.params.seed,
    **snakemake.params.evaluation,
)
write_table(table, snakemake.output.table)
write_table(curves, snakemake.output.curves)
write_provenance(
    snakemake.output.provenance,
    packages=("numpy", "pandas", "scipy"),
    parameters=dict(snakemake.params.evaluation) | {"seed": snakemake.params.seed, "shadows": snakemake.params.shadows},
    inputs={path: sha256_of(path) for path in snakemake.input},
)
