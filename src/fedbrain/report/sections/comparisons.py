"""Which differences between cells are more than chance."""

from collections.abc import Mapping

import pandas as pd

from fedbrain.report.html import Html, columns, folded, join, p, strong, table
from fedbrain.report.material import POOLED, SITE_ONLY, Material, shown
from fedbrain.report.numbers import fixed, interval, p_value

ALPHA = 0.05  # what a p-value after Holm's correction is counted against (ours)
ROUGH = "p-values and limits are rough"  # in the note of a comparison on few subjects
ROOM = 40  # rows of a table that the page shows at once; longer ones are opened by the reader
FILE = "results/evaluation/comparisons.tsv"


def comparisons(material: Material) -> Html:
    """Differences of AUC with intervals, tests and their correction."""
    if material.comparisons.empty:
        return p("There is one cell only, and nothing to compare it with.")
    reference = material.study["evaluation"]["comparisons"]["reference"]
    rows = {"against": [], "pairs": [], "clients": []}
    baseline = "/".join(SITE_ONLY)
    for row in material.comparisons.to_dict("records"):
        first = reference or baseline in (row["cell_a"], row["cell_b"])
        kind = "clients" if row["client"] != POOLED else "against" if first else "pairs"
        rows[kind].append(_row(row))
    against = shown(tuple(reference)) if reference else "the site alone"
    titles = {
        "against": f"All test subjects, against {against}",
        "pairs": "All test subjects, cell against cell",
        "clients": "Each cohort's test subjects",
    }
    header = columns("cell a", "cell b", "on", f"#AUC a − b|{material.level} interval", "#p|DeLong", "#p|Holm")
    header += columns("#from seeds|standard error", "#subjects", "#cases")
    tables = {kind: table(f"comparisons-{kind}", titles[kind], header, rows[kind], file=FILE, heads=3) for kind in rows}
    folds = {
        kind: folded(f"{titles[kind]} ({len(rows[kind]):,} rows)", tables[kind])
        if kind != "against" and len(rows[kind]) > ROOM
        else tables[kind]
        for kind in rows
        if rows[kind]
    }
    return join(_words(material, reference), *folds.values())


def _row(row: Mapping) -> list:
    names = [shown(tuple(row[name].split("/"))) for name in ("cell_a", "cell_b")]
    few = " *" if not pd.isna(row["note"]) and ROUGH in row["note"] else ""
    difference = interval(row, of="difference", sign=True, strong=True)
    tests = [p_value(row["p_delong"], few), p_value(row["p_holm"], few), fixed(row["seed_se"], 3)]
    return [*names, row["client"], difference, *tests, int(row["subjects"]), int(row["positives"])]


def _words(material: Material, reference) -> Html:
    options = material.study["evaluation"]["comparisons"]
    tested = material.comparisons[material.comparisons["p_holm"].notna()]
    below = int((tested["p_holm"] < ALPHA).sum())
    family = {"table": "all of them", "client": "those of one cohort (or the pool)"}[options["family"]]
    against = (
        join("Every cell is compared with ", strong(shown(tuple(reference))))
        if reference
        else "Every pair of cells is compared"
    )
    rough = tested["note"].fillna("").str.contains(ROUGH)
    found = int((rough & (tested["p_holm"] < ALPHA)).sum())
    few = ""
    if rough.any():
        few = (
            f"On fewer than ten cases or controls (marked *) are {int(rough.sum()):,} of the tests"
            + (f", {found:,} of those below {ALPHA} among them" if below else "")
            + ": their p-values and limits are rough, and no evidence by themselves. "
        )
    return p(
        against,
        ", the classifier that knows the site alone among them, on the same test subjects, for each cohort and pooled: ",
        f"{len(tested):,} tests. The interval is of the difference itself (paired bootstrap over subjects); p is DeLong's, Holm the same "
        f"corrected over {family}: ",
        strong(f"{below} of {len(tested):,} stay below {ALPHA}"),
        f". {few}The last error is what comes from the random starts of the training, which neither interval nor p holds: a difference "
        "of less than about twice as much may vanish with other seeds.",
    )
