"""Puts what every cell cost side by side."""

import json
from pathlib import Path

from fedbrain.evaluation.efficiency import efficiency
from fedbrain.logs import log_to
from fedbrain.tables import ROUNDS, read_table, write_table

log_to(snakemake.log[0])
runs = [
    (json.loads(Path(summary).read_text(encoding="utf-8")), read_table(rounds, ROUNDS))
    for summary, rounds in zip(snakemake.input.summaries, snakemake.input.rounds)
]
write_table(efficiency(snakemake.params.cells, runs), snakemake.output.table)
