"""Draws AUC by client and aggregation, for one head."""

from fedbrain.figures.auc_by_client import auc_by_client
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import PERFORMANCE, read_table

log_to(snakemake.log[0])
performance = read_table(snakemake.input.performance, PERFORMANCE)
figure = auc_by_client(
    performance,
    snakemake.params.cohorts,
    snakemake.wildcards.head,
    tuning=snakemake.wildcards.tuning,
    level=snakemake.params.level,
)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
