"""Draws the ROC curves of the membership attacks."""

from fedbrain.figures.membership import membership
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import MEMBERSHIP_CURVES, PRIVACY, read_table

log_to(snakemake.log[0])
figure = membership(
    read_table(snakemake.input.curves, MEMBERSHIP_CURVES),
    read_table(snakemake.input.privacy, PRIVACY),
    cohorts=snakemake.params.cohorts,
    level=snakemake.params.level,
)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
