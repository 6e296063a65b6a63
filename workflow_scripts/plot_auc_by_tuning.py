"""Draws AUC by tuning and cohort."""

from fedbrain.figures.auc_by_tuning import auc_by_tuning
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import PERFORMANCE, read_table

log_to(snakemake.log[0])
performance = read_table(snakemake.input.performance, PERFORMANCE)
figure = auc_by_tuning(
    performance,
    snakemake.params.cohorts,
    aggregation=snakemake.params.aggregation,
    references=snakemake.params.references,
    level=snakemake.params.level,
)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
