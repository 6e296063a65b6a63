"""Draws the pooled AUC of every cell over the bytes that a client exchanged."""

from fedbrain.figures.auc_by_cost import auc_by_cost
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import EFFICIENCY, PERFORMANCE, read_table

log_to(snakemake.log[0])
figure = auc_by_cost(
    read_table(snakemake.input.performance, PERFORMANCE),
    read_table(snakemake.input.efficiency, EFFICIENCY),
    level=snakemake.params.level,
)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
