"""Draws how much the embeddings of an encoder say about the cohort that they come from."""

from fedbrain.figures.site_effects import site_effects
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import SITE_EFFECTS, SITE_PROJECTION, SITE_VARIANCE, read_table

log_to(snakemake.log[0])
figure = site_effects(
    read_table(snakemake.input.told, SITE_EFFECTS),
    read_table(snakemake.input.variance, SITE_VARIANCE),
    read_table(snakemake.input.projection, SITE_PROJECTION),
    snakemake.params.cohorts,
    class_names=snakemake.params.class_names,
    level=snakemake.params.level,
)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
