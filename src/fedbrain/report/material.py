"""What a study page is made of: the tables of a study and what its runs and its config say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from fedbrain.evaluation.reported import reported_auc
from fedbrain.registry import REFERENCES
from fedbrain.tables import DROPPED

SITE_ONLY = ("site_only", "none", "none")  # the baseline among the cells
POOLED = "pooled"
AXES = ["head", "tuning", "aggregation"]

CellName = tuple[str, str, str]


@dataclass(frozen=True)
class Material:
    """Tables in, nothing else: no section reads a file.

    Args:
        study: title, seed, labels, class_names, splits, preprocessing, quality, encoder, evaluation, training and the options of
            head, tuning and aggregation of the config.
        phantoms: the cohorts that are simulated.
        datasets: the public data set that each cohort comes from, as the config says, or the cohort's name.
        scans, excluded, passed_over, volumes, quality: per cohort (tables.SCANS, EXCLUDED, PASSED_OVER, VOLUMES, QUALITY), in the
            order of the config.
        splits: tables.SPLITS.
        dropped: tables.DROPPED; those of an external cohort whose person another cohort has count here alone, ``quality`` keeps them.
        duplicates: tables.DUPLICATES.
        performance, efficiency, comparisons, calibration, thresholds, subgroups: tables.PERFORMANCE and so on.
        site_effects, site_variance: by frozen encoder (tables.SITE_EFFECTS, SITE_VARIANCE).
        harmonization: by the tuning that asks for it (tables.HARMONIZATION).
        drawn: the aggregation that figures of one aggregation show.
        cells: head, tuning, aggregation and seeds of each cell.
        summaries: what each run wrote about itself, one per cell and seed.
        versions: of the software, by package, beside those that the runs name.
        figures: pictures by the name of their file, without its ending: bytes of an SVG or of a WebP.
        extra: tables that a study has only where it asks for them, by the name of their file.
        external: the cohorts that are tested on only.
    """

    study: Mapping
    phantoms: Sequence[str]
    datasets: Mapping[str, str]
    scans: Mapping[str, pd.DataFrame]
    excluded: Mapping[str, pd.DataFrame]
    passed_over: Mapping[str, pd.DataFrame]
    volumes: Mapping[str, pd.DataFrame]
    quality: Mapping[str, pd.DataFrame]
    splits: pd.DataFrame
    duplicates: pd.DataFrame
    performance: pd.DataFrame
    efficiency: pd.DataFrame
    comparisons: pd.DataFrame
    calibration: pd.DataFrame
    thresholds: pd.DataFrame
    subgroups: pd.DataFrame
    site_effects: Mapping[str, pd.DataFrame]
    site_variance: Mapping[str, pd.DataFrame]
    harmonization: Mapping[str, pd.DataFrame]
    drawn: str
    cells: Sequence[Sequence]
    summaries: Sequence[Mapping]
    versions: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    extra: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    external: Sequence[str] = ()
    dropped: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(DROPPED)))

    @property
    def cohorts(self) -> list[str]:
        """Their names, in the order of the config."""
        return list(self.scans)

    @cached_property
    def used(self) -> dict[str, pd.Series]:
        """The scans of each cohort that take part."""
        result = {}
        for cohort, table in self.quality.items():
            out = self.dropped.loc[self.dropped["cohort"] == cohort, "scan"]
            result[cohort] = table.loc[(table["kept"] == 1) & ~table["scan"].isin(out), "scan"]
        return result

    @property
    def level(self) -> str:
        """Of intervals, in words."""
        return f"{100 * self.study['evaluation']['level']:g} %"

    @property
    def classes(self) -> tuple[str, str]:
        """What controls and cases are called."""
        return tuple(self.study["class_names"])

    @cached_property
    def names(self) -> list[CellName]:
        """The cells of the performance table, the baseline among them."""
        return cells_of(self.performance)

    @cached_property
    def aucs(self) -> dict:
        """Rows of the AUC with the interval to report, by cell and client."""
        return by_cell(reported_auc(self.performance))

    def metric(self, name: str) -> dict:
        """Rows of one metric, by cell and client."""
        return by_cell(self.performance[self.performance["metric"] == name])

    @cached_property
    def pooled(self) -> dict[CellName, Mapping]:
        """The AUC of all test subjects together of each cell that has one, the baseline left out."""
        rows = {cell: self.aucs.get((*cell, POOLED)) for cell in self.names if cell != SITE_ONLY}
        return {cell: row for cell, row in rows.items() if row is not None and not pd.isna(row["value"])}

    @property
    def federated(self) -> dict[CellName, Mapping]:
        """Those of them that are federations."""
        return {cell: row for cell, row in self.pooled.items() if cell[2] not in REFERENCES}

    @property
    def best(self) -> CellName | None:
        """The federated cell with the highest AUC of all test subjects together."""
        return max(self.federated, key=lambda cell: self.federated[cell]["value"]) if self.federated else None

    @property
    def site_only(self) -> Mapping | None:
        """The AUC of all test subjects together of the classifier that knows the cohort alone."""
        row = self.aucs.get((*SITE_ONLY, POOLED))
        return None if row is None or pd.isna(row["value"]) else row

    @property
    def untrained(self) -> bool:
        """Whether some run has an encoder of random weights."""
        return any(str(summary["weights"]).startswith("random") for summary in self.summaries)

    @property
    def all_versions(self) -> dict[str, str]:
        """Of all software that is known of, by package."""
        return {**self.versions, **(self.summaries[0]["versions"] if self.summaries else {})}


def cells_of(table: pd.DataFrame) -> list[CellName]:
    """Head, tuning and aggregation of each cell of a table, in its order."""
    return list(dict.fromkeys(table[AXES].itertuples(index=False, name=None)))


def by_cell(table: pd.DataFrame) -> dict:
    """Rows by head, tuning, aggregation and client."""
    return {tuple(row[name] for name in (*AXES, "client")): row for row in table.to_dict("records")}


def of_cell(table: pd.DataFrame, cell: CellName) -> pd.DataFrame:
    """The rows of one cell."""
    return table[(table[AXES] == list(cell)).all(axis=1)]


def shown(cell: CellName) -> str:
    """A cell in words."""
    return "site only" if cell == SITE_ONLY else " / ".join(cell)


def axes_of(cell: CellName) -> list[str]:
    """The three columns of a cell."""
    return ["site only", "", ""] if cell == SITE_ONLY else list(cell)
