"""AUC by tuning of the encoder and cohort, one panel per head."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from fedbrain.figures.auc_panels import Group, auc_panels, reference_groups
from fedbrain.figures.style import SITE_ONLY, shown_name, styled, text_figure


@styled
def auc_by_tuning(
    performance: pd.DataFrame,
    cohorts: Sequence[str],
    *,
    aggregation: str = "fedavg",
    references: Sequence[str] = (),
    level: float = 0.95,
) -> Figure:
    """Draws test AUC with its interval for each tuning, cohort by cohort and pooled, under one aggregation.

    Heads with one tuning only are left out. Arguments as in :func:`fedbrain.figures.auc_by_head.auc_by_head`.
    """
    auc = performance[(performance["metric"] == "auc") & (performance["head"] != SITE_ONLY)]
    cells = auc[(auc["aggregation"] == aggregation) & ~auc["head"].isin(list(references))]
    beside = reference_groups(auc, references, aggregation)
    panels = []
    for head in dict.fromkeys(cells["head"]):
        tunings = dict.fromkeys(cells.loc[cells["head"] == head, "tuning"])
        if len(tunings) > 1:
            groups = [Group(shown_name(tuning), (head, tuning, aggregation)) for tuning in tunings]
            panels.append((f"{shown_name(head)}, {shown_name(aggregation)}", groups + beside))
    if not panels:
        return text_figure(f"No head was trained with several tunings under {shown_name(aggregation)}.")
    return auc_panels(performance, cohorts, panels, level=level)
