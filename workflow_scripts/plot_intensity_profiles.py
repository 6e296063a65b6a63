"""Draws the density of intensities within the brain, per client, before and after normalization."""

from fedbrain.figures.intensity import intensity_profiles
from fedbrain.figures.style import save_figure
from fedbrain.logs import log_to
from fedbrain.tables import HISTOGRAM, concatenate

log_to(snakemake.log[0])
histograms = {cohort: concatenate(paths, HISTOGRAM) for cohort, paths in snakemake.params.cohorts.items()}
figure = intensity_profiles(histograms, list(histograms), intensity=snakemake.params.intensity)
save_figure(figure, snakemake.output.svg, snakemake.output.png)
