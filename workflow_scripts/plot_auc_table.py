"""Draws the AUC of every cell on every client as a heat map."""

from fedbrain.figures.auc_table import auc_table
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import PERFORMANCE, read_table

log_to(snakemake.log[0])
figure = auc_table(read_table(snakemake.input.performance, PERFORMANCE), snakemake.params.cohorts)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
