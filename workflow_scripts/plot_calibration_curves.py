"""Draws the calibration curves of the heads under one aggregation."""

from fedbrain.figures.calibration_curves import calibration_curves
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import CALIBRATION, PERFORMANCE, read_table

log_to(snakemake.log[0])
figure = calibration_curves(
    read_table(snakemake.input.calibration, CALIBRATION),
    read_table(snakemake.input.performance, PERFORMANCE),
    aggregation=snakemake.params.aggregation,
    level=snakemake.params.level,
)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
