"""Writes the study page, and the same as the landing page of Snakemake's report."""

import json
from pathlib import Path

from fedbrain.logs import log_to
from fedbrain.provenance import versions
from fedbrain.report.figures import smaller
from fedbrain.report.material import Material
from fedbrain.report.sections.methods import packages
from fedbrain.report.study_page import landing_page, study_page
from fedbrain.tables import (
    CALIBRATION,
    COMPARISONS,
    DROPPED,
    DUPLICATES,
    EFFICIENCY,
    EXCLUDED,
    HARMONIZATION,
    PASSED_OVER,
    PERFORMANCE,
    QUALITY,
    SCANS,
    SITE_EFFECTS,
    SITE_VARIANCE,
    SPLITS,
    SUBGROUPS,
    THRESHOLDS,
    VOLUMES,
    by_cohort,
    concatenate,
    read_table,
    write_text,
)

log_to(snakemake.log[0])
cohorts = snakemake.params.cohorts


def read_each(names, paths, types):
    """Tables of one kind by name."""
    return {name: read_table(path, types) for name, path in zip(names, paths)}


material = Material(
    study=snakemake.params.study,
    phantoms=snakemake.params.phantoms,
    datasets=snakemake.params.datasets,
    scans={cohort: read_table(path, SCANS) for cohort, path in zip(cohorts, snakemake.input.scans)},
    excluded={cohort: read_table(path, EXCLUDED) for cohort, path in zip(cohorts, snakemake.input.excluded)},
    passed_over={cohort: read_table(path, PASSED_OVER) for cohort, path in zip(cohorts, snakemake.input.passed_over)},
    volumes={
        cohort: concatenate(paths, VOLUMES) for cohort, paths in by_cohort(snakemake.input.volumes, cohorts).items()
    },
    quality={cohort: read_table(path, QUALITY) for cohort, path in zip(cohorts, snakemake.input.quality)},
    splits=read_table(snakemake.input.splits, SPLITS),
    duplicates=read_table(snakemake.input.duplicates, DUPLICATES),
    performance=read_table(snakemake.input.performance, PERFORMANCE),
    efficiency=read_table(snakemake.input.efficiency, EFFICIENCY),
    comparisons=read_table(snakemake.input.comparisons, COMPARISONS),
    calibration=read_table(snakemake.input.calibration, CALIBRATION),
    thresholds=read_table(snakemake.input.thresholds, THRESHOLDS),
    subgroups=read_table(snakemake.input.subgroups, SUBGROUPS),
    site_effects=read_each(snakemake.params.encoders, snakemake.input.site_effects, SITE_EFFECTS),
    site_variance=read_each(snakemake.params.encoders, snakemake.input.site_variance, SITE_VARIANCE),
    harmonization=read_each(snakemake.params.harmonized, snakemake.input.harmonization, HARMONIZATION),
    drawn=snakemake.params.drawn,
    cells=snakemake.params.cells,
    summaries=[json.loads(Path(path).read_text(encoding="utf-8")) for path in snakemake.input.summaries],
    versions=versions(*packages(snakemake.params.study)),
    figures={Path(path).stem: smaller(path) for path in snakemake.input.figures},
    external=snakemake.params.external,
    dropped=read_table(snakemake.input.dropped, DROPPED),
    extra={Path(path).stem: read_table(path, {}) for path in snakemake.input.extra},
)
page = study_page(material)
write_text(page, snakemake.output.page)
write_text(landing_page(page), snakemake.output.landing)
