"""Draws the parameters that every cell counts as sent against the bytes that it sent."""

from fedbrain.figures.communication import communication
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import EFFICIENCY, read_table

log_to(snakemake.log[0])
figure = communication(read_table(snakemake.input.efficiency, EFFICIENCY))
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
