import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text

from fedbrain.evaluation.calibration import calibration_curves as calibration_table
from fedbrain.evaluation.performance import performance as performance_table
from fedbrain.evaluation.roc import roc_curves as roc_table
from fedbrain.figures.calibration_curves import calibration_curves
from fedbrain.figures.roc_curves import roc_curves
from fedbrain.tables import PREDICTIONS

CELLS = [("linear", "frozen", "fedavg"), ("conv_s", "lora", "fedavg")]


def words(figure):
    return " | ".join(text.get_text() for text in figure.findobj(Text))


@pytest.fixture(scope="module")
def predictions():
    result = {}
    for place, cell in enumerate([*CELLS, ("linear", "frozen", "local")]):
        result[cell] = {}
        for seed in range(2):
            rng = np.random.default_rng(10 * place + seed)
            rows = [("north", str(n), pd.NA, int(n < 30)) for n in range(70)]
            frame = pd.DataFrame(rows, columns=["cohort", "subject", "session", "label"])
            score = 1 / (1 + np.exp(-frame["label"] - rng.normal(size=70)))
            result[cell][seed] = frame.assign(score=score).astype(PREDICTIONS)
    return result


@pytest.fixture(scope="module")
def tables(predictions):
    own = {cell: predictions[cell] for cell in CELLS}
    return {
        "roc": roc_table(own, clients=["north"], resamples=100),
        "calibration": calibration_table(predictions, clients=["north"], bins=5),
        "performance": performance_table(predictions, clients=["north"], resamples=200),
    }


def test_roc_panels_show_mean_band_and_seeds_of_the_table(tables):
    table = tables["roc"]
    figure = roc_curves(table, tables["performance"])
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == ["Linear\nfrozen encoder, FedAvg", "CONV S\nLoRA, FedAvg"]
    for axes, cell in zip(panels, CELLS):
        own = table[(table[["head", "tuning", "aggregation"]] == list(cell)).all(axis=1)]
        mean = own[own["seed"].isna()]
        (line,) = [line for line in axes.lines if line.get_gid() == "mean"]
        np.testing.assert_allclose(line.get_xydata(), mean[["fpr", "tpr"]])
        seeds = [line.get_ydata() for line in axes.lines if line.get_gid() == "seed"]
        np.testing.assert_allclose(seeds, [part["tpr"] for _, part in own.groupby("seed")])
        (band,) = [part for part in axes.collections if part.get_gid() == "band"]
        corners = band.get_paths()[0].vertices
        for name in ("low", "high"):
            for point in mean[["fpr", name]].to_numpy(float)[::20]:
                assert np.abs(corners - point).sum(axis=1).min() < 1e-9
        row = tables["performance"].query("head == @cell[0] and client == 'pooled' and metric == 'auc'").iloc[0]
        if cell[2] == "fedavg":
            assert f"AUC {row['value']:.2f}\n[{row['low']:.2f}, {row['high']:.2f}]" in words(figure)
    assert "(30 cases)" in words(figure)
    assert "(40 controls)" in words(figure)


def test_a_roc_panel_without_a_curve_says_why(tables):
    performance = tables["performance"].assign(note="one class only in test")
    figure = roc_curves(tables["roc"].assign(tpr=np.nan), performance)
    figure.draw_without_rendering()
    assert "one class only in" in words(figure)
    assert "No cell" in words(roc_curves(tables["roc"].iloc[:0], performance))


def test_small_classes_have_delongs_interval_with_a_star(tables):
    figure = roc_curves(tables["roc"], tables["performance"].assign(positives=5))
    assert "]*" in words(figure)
    assert "* DeLong's interval" in words(figure)
    assert "]*" not in words(roc_curves(tables["roc"], tables["performance"]))


def test_calibration_points_intervals_and_counts_are_the_first_seeds(tables):
    table = tables["calibration"]
    figure = calibration_curves(table, tables["performance"])
    upper, lower = figure.axes[:2], figure.axes[2:4]
    for above, below, cell in zip(upper, lower, CELLS):
        own = table[
            (table[["head", "tuning", "aggregation"]] == list(cell)).all(axis=1) & (table["client"] == "pooled")
        ]
        first, other = (own[own["seed"] == seed].astype({"cases": float, "scans": float}) for seed in (0, 1))
        (bars,) = [container for container in above.containers if isinstance(container, ErrorbarContainer)]
        np.testing.assert_allclose(bars[0].get_xydata(), first[["score", "share"]].astype(float))
        ends = np.array([segment[:, 1] for segment in bars[2][0].get_segments()])
        np.testing.assert_allclose(ends, first[["low", "high"]].astype(float))
        (thin,) = [line for line in above.lines if line.get_gid() == "seed"]
        np.testing.assert_allclose(thin.get_xydata(), other[["score", "share"]].astype(float))
        heights = {
            part.get_gid(): [np.abs(segment[:, 1]).max() for segment in part.get_segments()]
            for part in below.collections
            if isinstance(part, LineCollection)
        }
        assert heights["cases"] == first["cases"].tolist()
        assert heights["controls"] == (first["scans"] - first["cases"]).tolist()
    slope = tables["performance"].query("head == 'linear' and aggregation == 'fedavg' and client == 'pooled'")
    slope = slope.set_index("metric")["value"]["calibration_slope"]
    assert f"slope {slope:.2f}, intercept" in words(figure)
    assert len([axes for axes in figure.axes if axes.axison]) == 4  # local is another aggregation


def test_a_calibration_curve_that_does_not_exist_says_why(tables):
    table = tables["calibration"]
    nothing = table.assign(score=pd.NA, share=pd.NA, note="no test subject: no curve").astype(table.dtypes)
    figure = calibration_curves(nothing, tables["performance"])
    figure.draw_without_rendering()
    assert "no test subject:" in words(figure)
    assert "No cell with aggregation Krum" in words(
        calibration_curves(table, tables["performance"], aggregation="krum")
    )
