"""Which interval of an AUC the report and the figures show: one rule for all of them."""

import pandas as pd

FEW = 20  # subjects of a class below which a percentile interval is too narrow (ours, measured: docs/evaluation.md)
BOOTSTRAP, DELONG = "bootstrap", "DeLong"


def reported_auc(performance: pd.DataFrame) -> pd.DataFrame:
    """The AUC rows of a table PERFORMANCE with the interval to report, and a column ``interval`` that names it.

    Where a class has fewer than 20 test subjects, low, high and note are those of the metric "auc_delong", elsewhere those
    of the bootstrap, whatever its method. A table without "auc_delong" keeps the bootstrap's.
    """
    keys = ["head", "tuning", "aggregation", "client"]
    rows = performance[performance["metric"] == "auc"].reset_index(drop=True)
    other = performance.loc[performance["metric"] == "auc_delong", [*keys, "low", "high", "note"]]
    joined = rows[keys].merge(other.drop_duplicates(keys), on=keys, how="left", indicator=True)
    smaller = rows[["positives", "negatives"]].astype("Float64").min(axis=1)
    few = (joined["_merge"] == "both") & (smaller < FEW).fillna(False).astype(bool)
    for column in ("low", "high", "note"):
        rows[column] = rows[column].mask(few, joined[column])
    return rows.assign(interval=pd.Series(BOOTSTRAP, index=rows.index, dtype="string").mask(few, DELONG))


def interval_words(rows: pd.DataFrame, level: float) -> str:
    """What intervals some rows of :func:`reported_auc` have, for an axis or a caption."""
    kinds = [kind for kind in (BOOTSTRAP, DELONG) if kind in set(rows["interval"])]
    return f"{100 * level:g} % interval" + (f" ({' or '.join(kinds)})" if kinds else "")
