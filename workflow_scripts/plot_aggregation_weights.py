"""Draws the contribution weight of each client by round, for one head."""

import pandas as pd

from fedbrain.figures.aggregation_weights import aggregation_weights
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import ROUNDS, read_table

log_to(snakemake.log[0])
rounds = pd.concat(
    read_table(path, ROUNDS).assign(aggregation=aggregation, seed=seed)
    for (aggregation, seed), path in zip(snakemake.params.runs, snakemake.input.rounds)
)
scans = rounds.groupby("client")["scans"].max().to_dict()
figure = aggregation_weights(rounds, snakemake.params.cohorts, scans=scans)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
