"""Draws what a model of its own is worth to each client, for one head and tuning."""

from fedbrain.figures.personalisation import personalisation
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import PERSONALISATION, read_table

log_to(snakemake.log[0])
figure = personalisation(
    read_table(snakemake.input.table, PERSONALISATION),
    snakemake.params.cohorts,
    snakemake.wildcards.head,
    snakemake.wildcards.tuning,
    level=snakemake.params.level,
)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
