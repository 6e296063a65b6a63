"""Draws the AUC of every cell on the cohorts that it has never seen."""

from fedbrain.figures.style import save_figure
from fedbrain.figures.transfer import transfer
from fedbrain.logs import log_to
from fedbrain.tables import TRANSFER, read_table

log_to(snakemake.log[0])
table = read_table(snakemake.input.transfer, TRANSFER)
figure = transfer(table, snakemake.params.cohorts, level=snakemake.params.level)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
