"""Draws the explanation maps of a cell, group by group, and their check by scrambled weights."""

from fedbrain.figures.explanation import explanation
from fedbrain.figures.style import save_figure
from fedbrain.imaging.map_names import GROUPS, group_map
from fedbrain.imaging.maps import read_map
from fedbrain.imaging.registration import GRID_AFFINE, template
from fedbrain.logs import log_to
from fedbrain.tables import EXPLANATION, RANDOMISATION, read_table

log_to(snakemake.log[0])
paths = {path.rpartition("/")[2]: path for path in snakemake.input.maps}
brain = template()
figure = explanation(
    {
        method: {group: read_map(paths[group_map(group, method)]) for group in GROUPS}
        for method in snakemake.params.methods
    },
    read_table(snakemake.input.table, EXPLANATION),
    read_table(snakemake.input.randomisation, RANDOMISATION),
    brain.values * brain.mask,
    GRID_AFFINE,
    class_names=snakemake.params.class_names,
    baseline=snakemake.params.baseline,
)
save_figure(figure, snakemake.output.svg, snakemake.output.png, alarm=snakemake.params.alarm)
