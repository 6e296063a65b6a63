"""Writes the report's first page."""

import json
from pathlib import Path

from fedbrain.logs import log_to
from fedbrain.report.study_page import study_page
from fedbrain.tables import (
    CALIBRATION,
    COMPARISONS,
    EFFICIENCY,
    EXCLUDED,
    PERFORMANCE,
    SCANS,
    SPLITS,
    SUBGROUPS,
    THRESHOLDS,
    VOLUMES,
    concatenate,
    read_table,
    write_text,
)

log_to(snakemake.log[0])
cohorts = snakemake.params.cohorts
page = study_page(
    snakemake.params.study,
    phantoms=snakemake.params.phantoms,
    datasets=snakemake.params.datasets,
    scans={cohort: read_table(path, SCANS) for cohort, path in zip(cohorts, snakemake.input.scans)},
    excluded={cohort: read_table(path, EXCLUDED) for cohort, path in zip(cohorts, snakemake.input.excluded)},
    volumes={
        cohort: concatenate([path for path in snakemake.input.volumes if Path(path).parent.name == cohort], VOLUMES)
        for cohort in cohorts
    },
    splits=read_table(snakemake.input.splits, SPLITS),
    performance=read_table(snakemake.input.performance, PERFORMANCE),
    efficiency=read_table(snakemake.input.efficiency, EFFICIENCY),
    comparisons=read_table(snakemake.input.comparisons, COMPARISONS),
    calibration=read_table(snakemake.input.calibration, CALIBRATION),
    thresholds=read_table(snakemake.input.thresholds, THRESHOLDS),
    subgroups=read_table(snakemake.input.subgroups, SUBGROUPS),
    drawn=snakemake.params.drawn,
    cells=snakemake.params.cells,
    summaries=[json.loads(Path(path).read_text(encoding="utf-8")) for path in snakemake.input.summaries],
)
write_text(page, snakemake.output.page)
