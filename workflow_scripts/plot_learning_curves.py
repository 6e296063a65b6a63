"""Draws training and validation loss of each client by round, for one head and tuning."""

import json
from pathlib import Path

import pandas as pd

from fedbrain.figures.learning_curves import learning_curves
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import ROUNDS, read_table

log_to(snakemake.log[0])
runs = [tuple(run) for run in snakemake.params.runs]  # aggregation, seed
rounds = pd.concat(
    read_table(path, ROUNDS).assign(aggregation=aggregation, seed=seed)
    for (aggregation, seed), path in zip(runs, snakemake.input.rounds)
)
chosen = [json.loads(Path(path).read_text(encoding="utf-8"))["best_round"] for path in snakemake.input.summaries]
figure = learning_curves(
    rounds,
    snakemake.params.cohorts,
    best_rounds=dict(zip(runs, chosen)),
    scans=rounds.groupby("client")["scans"].max().to_dict(),
)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
