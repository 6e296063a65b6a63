"""Draws the ROC curves of the heads under one aggregation, with bootstrap bands."""

from fedbrain.evaluation.predictions import read_runs
from fedbrain.evaluation.roc import roc_curves as curves_of
from fedbrain.figures.roc_curves import roc_curves
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import PERFORMANCE, SPLITS, read_table

log_to(snakemake.log[0])
level = snakemake.params.evaluation["level"]
curves = curves_of(
    read_runs(snakemake.params.runs, snakemake.input.predictions),
    clients=snakemake.params.cohorts,
    splits=read_table(snakemake.input.splits, SPLITS),
    resamples=snakemake.params.evaluation["resamples"],
    level=level,
    seed=snakemake.params.seed,
)
figure = roc_curves(curves, read_table(snakemake.input.performance, PERFORMANCE), level=level)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
