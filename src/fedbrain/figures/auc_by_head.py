"""AUC by classification head and cohort, one panel per tuning."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from fedbrain.figures.auc_panels import Group, auc_panels, reference_groups
from fedbrain.figures.style import SITE_ONLY, shown_name, styled, text_figure


@styled
def auc_by_head(
    performance: pd.DataFrame,
    cohorts: Sequence[str],
    *,
    aggregation: str = "fedavg",
    references: Sequence[str] = (),
    level: float = 0.95,
) -> Figure:
    """Draws test AUC with its interval for each head, cohort by cohort and pooled, under one aggregation.

    performance: table PERFORMANCE. cohorts: all cohorts in the order of the config. references: those of its heads that are
    no heads on the encoder (ResNet18, NCC); they stand beside the heads in every panel. level: of the table's intervals.
    """
    auc = performance[(performance["metric"] == "auc") & (performance["head"] != SITE_ONLY)]
    cells = auc[(auc["aggregation"] == aggregation) & ~auc["head"].isin(list(references))]
    beside = reference_groups(auc, references, aggregation)
    panels = []
    for tuning in dict.fromkeys(cells["tuning"]):
        heads = dict.fromkeys(cells.loc[cells["tuning"] == tuning, "head"])
        groups = [Group(shown_name(head), (head, tuning, aggregation)) for head in heads]
        panels.append((f"{shown_name(tuning)}, {shown_name(aggregation)}", groups + beside))
    if not panels and beside:
        panels = [("references", beside)]
    if not panels:
        return text_figure(f"No cell with aggregation {shown_name(aggregation)} has been evaluated.")
    return auc_panels(performance, cohorts, panels, level=level)
