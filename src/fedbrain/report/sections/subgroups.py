"""Whether the models do as well for women as for men, for the old as for the young, at each site."""

from fedbrain.report.html import Cell, Html, columns, folded, join, p, strong, table
from fedbrain.report.material import POOLED, CellName, Material, cells_of, of_cell, shown
from fedbrain.report.numbers import counted, interval

FEW = 10  # cases or controls below which a group's numbers are a description only (evaluation.subgroups)


def subgroups(material: Material) -> Html:
    """Metrics and gaps by group, of the cells that figures show."""
    cells = subgroup_cells(material)
    if not cells:
        return p("The study asks for no subgroups.")
    tables = [_table(material, cell, place) for place, cell in enumerate(cells)]
    return join(
        _warning(material),
        p(
            "All test subjects together by group, at a score of 0.5. TPR difference: sensitivity of the group minus that of the largest group "
            "(reference); FPR difference: the same for false alarms, 1 − specificity. Both are 0 where errors are alike (equalised odds). No "
            "correction for many groups is made, and a difference may be one of disease severity: a finding here is a question for "
            "other data. All cells and cohorts are in results/evaluation/subgroups.tsv."
        ),
        tables[0],
        *(folded(shown(cell), shown_table) for cell, shown_table in zip(cells[1:], tables[1:])),
    )


def subgroup_cells(material: Material) -> list[CellName]:
    """The cells whose groups are shown: the reference first, then those of the aggregation that figures show."""
    cells = cells_of(material.subgroups)
    reference = tuple(material.study["evaluation"]["comparisons"]["reference"] or ())
    return [cell for cell in cells if cell == reference] + [
        cell for cell in cells if cell[2] == material.drawn and cell != reference
    ]


def _warning(material: Material) -> Html:
    pooled = material.subgroups[material.subgroups["client"] == POOLED]
    few = pooled["note"].fillna("").str.contains("a description, no evidence")
    groups = len(pooled[few][["attribute", "group"]].drop_duplicates())
    every = len(pooled.dropna(subset=["group"])[["attribute", "group"]].drop_duplicates())
    if not groups:
        return Html("")
    return p(
        strong(f"{groups} of the {every} groups have fewer than ten cases or ten controls"),
        " (marked): their numbers describe this test set and are no evidence of a difference.",
        kind="caution",
    )


def _table(material: Material, cell: CellName, place: int) -> Html:
    own = of_cell(material.subgroups, cell)
    own = own[own["client"] == POOLED].dropna(subset=["group"])
    unit = f"{material.level} interval"
    header = columns(
        "by", "group", "#cases", "#controls", f"#AUC|{unit}", f"#sensitivity|{unit}", f"#specificity|{unit}"
    )
    header += columns(f"#TPR difference|{unit}", f"#FPR difference|{unit}")
    rows = []
    for (attribute, group), of_group in own.groupby(["attribute", "group"], sort=False):
        of = {row["metric"]: row for row in of_group.to_dict("records")}
        any_row = next(iter(of.values()))
        values = [interval(of.get(name)) for name in ("auc", "sensitivity", "specificity")]
        against = [Cell("reference" if not any("difference" in name for name in of) else "–")] * 2
        if "tpr_difference" in of:
            against = [interval(of[name], sign=True) for name in ("tpr_difference", "fpr_difference")]
        counts = [int(any_row["positives"]), int(any_row["negatives"])]
        name = f"{group} (too few)" if min(counts) < FEW else group
        rows.append([attribute.replace("_", " "), name, *counts, *values, *against])
    title = f"By group: {shown(cell)}"
    return table(f"subgroups-{place}", title, header, rows, file="results/evaluation/subgroups.tsv", heads=2)


def groups_words(material: Material) -> str:
    """What the groups are, in words."""
    every = material.subgroups.dropna(subset=["group"])[["attribute", "group"]].drop_duplicates()
    return ", ".join(
        f"{attribute.replace('_', ' ')} ({counted(len(groups), 'group')})"
        for attribute, groups in every.groupby("attribute", sort=False)
    )
