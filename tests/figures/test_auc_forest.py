import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from fedbrain.figures.auc_forest import auc_forest
from fedbrain.registry import REFERENCES


def words(figure):
    return " | ".join(text.get_text() for text in figure.findobj(Text))


def drawn(axes, gid):
    return [line.get_xydata().tolist() for line in axes.lines if line.get_gid() == gid]


def cells_of(performance):
    rows = performance[(performance["client"] == "pooled") & (performance["head"] != "site_only")]
    return rows.groupby(["head", "tuning"], sort=False, group_keys=False)[rows.columns.tolist()].apply(
        lambda block: block
    )


def test_every_cell_has_a_row_with_its_value_interval_and_numbers(performance):
    axes = auc_forest(performance).axes[0]
    rows = cells_of(performance)
    np.testing.assert_allclose([x for ((x, _),) in drawn(axes, "value")], rows["value"].astype(float))
    ends = [[low, high] for (low, _), (high, _) in drawn(axes, "interval")]
    np.testing.assert_allclose(ends, rows[["low", "high"]].to_numpy(float))
    labels = dict(zip(axes.get_yticks(), (tick.get_text() for tick in axes.get_yticklabels())))
    assert labels[0] == "Linear, frozen encoder"
    assert [labels[y] for ((_, y),) in drawn(axes, "value")][:2] == ["SimpleAvg", "FedAvg"]
    beside = {text.get_position()[1]: text.get_text() for text in axes.texts}
    first = rows.iloc[0]
    assert beside[1] == f"{first['value']:.2f}  [{first['low']:.2f}, {first['high']:.2f}]"


def test_references_are_hollow_and_the_baseline_is_a_line_with_its_interval(performance):
    figure = auc_forest(performance)
    axes = figure.axes[0]
    hollow = [line.get_markerfacecolor() == "white" for line in axes.lines if line.get_gid() == "value"]
    assert hollow == cells_of(performance)["aggregation"].isin(REFERENCES).tolist()
    verticals = {
        line.get_linestyle(): line.get_xdata()[0] for line in axes.lines if line.get_linestyle() in (":", "--")
    }
    assert verticals == {":": 0.5, "--": pytest.approx(0.61)}
    assert "67 subjects, 27 cases" in words(figure)
    alone = performance[performance["head"] != "site_only"]
    assert "site only" not in words(auc_forest(alone))


def test_few_subjects_have_delongs_interval_and_the_axis_says_so(performance):
    few = performance.assign(positives=5)
    delong = few.assign(metric="auc_delong", low=few["value"] - 0.3, high=few["value"] + 0.05)
    figure = auc_forest(pd.concat([few, delong], ignore_index=True))
    rows = cells_of(few)
    ends = np.array([[low, high] for (low, _), (high, _) in drawn(figure.axes[0], "interval")])
    np.testing.assert_allclose(ends[:, 0], rows["value"].astype(float) - 0.3)
    assert "95 % interval (DeLong)" in words(figure)
    assert "95 % interval (bootstrap)" in words(auc_forest(performance))


def test_a_cell_without_an_auc_keeps_its_row_and_a_remark_names_its_cells(performance):
    table = performance.copy()
    pooled = (table["client"] == "pooled") & (table["aggregation"] == "local")
    table.loc[pooled, "note"] = "mixes scores"
    table.loc[pooled & (table["head"] == "linear"), ["value", "low", "high"]] = pd.NA
    text = words(auc_forest(table))
    assert text.count("no AUC") == 2  # two tunings
    assert "Local only: mixes scores." in text
    assert "No cell" in words(auc_forest(table.iloc[:0]))
