"""Draws the pooled AUC of every cell with its interval."""

from fedbrain.figures.auc_forest import auc_forest
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import PERFORMANCE, read_table

log_to(snakemake.log[0])
figure = auc_forest(read_table(snakemake.input.performance, PERFORMANCE), level=snakemake.params.level)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
