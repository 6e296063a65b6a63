import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text

from fedbrain.figures.auc_by_cost import auc_by_cost, in_bytes, spread
from fedbrain.figures.auc_table import auc_table
from fedbrain.registry import REFERENCES


def words(figure):
    return " | ".join(text.get_text() for text in figure.findobj(Text))


def drawn(axes):
    """(x, value, low, high) of each point."""
    rows = []
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer):
            point, _, (bar,) = container
            (ends,) = bar.get_segments()
            rows.append((*point.get_xydata()[0], *sorted(ends[:, 1])))
    return np.array(rows)


def test_every_cell_stands_at_its_auc_and_those_that_send_nothing_apart(performance, efficiency):
    figure = auc_by_cost(performance, efficiency)
    left, right = figure.axes
    rows = performance[(performance["client"] == "pooled") & (performance["head"] != "site_only")]
    silent = rows["aggregation"].isin(REFERENCES)
    for axes, own in ((left, rows[silent]), (right, rows[~silent])):
        np.testing.assert_allclose(drawn(axes)[:, 1:], own[["value", "low", "high"]].to_numpy(float))
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["sends\nnothing"]
    assert right.get_xscale() == "log"
    strokes = sorted({float(line.get_xdata()[0]) for line in right.lines if line.get_gid() == "cost"})
    np.testing.assert_allclose(strokes, [1.2e5, 1e8, 7e8])
    assert "67 subjects, 27 cases" in words(figure)


def test_points_of_one_cost_stand_side_by_side_around_it(performance, efficiency):
    places = np.log10(drawn(auc_by_cost(performance, efficiency).axes[1])[:, 0])
    assert len(np.unique(places.round(6))) == len(places)
    of_linear = places[
        (performance.query("client == 'pooled' and aggregation not in @REFERENCES")["head"] == "linear")[:24]
    ]
    assert of_linear.mean() == pytest.approx(np.log10(1.2e5))
    assert np.ptp(of_linear) < 1


def test_spreading_by_hand():
    assert spread([1, 5, 9], 1).tolist() == [1, 5, 9]
    assert spread([2, 2, 2, 9], 0.5).tolist() == [1.5, 2, 2.5, 9]
    near = spread([0, 0, 0.6, 0.6], 0.5)  # two pairs that would run into each other
    assert np.diff(np.sort(near)).min() == pytest.approx(0.5)
    assert near.mean() == pytest.approx(0.3)


def test_a_study_without_a_federation_has_one_panel_and_one_without_costs_says_so(performance, efficiency):
    figure = auc_by_cost(performance, efficiency.assign(bytes_run=0.0))
    assert len(figure.axes) == 1
    assert "No cell has a pooled AUC and a cost" in words(auc_by_cost(performance, efficiency.iloc[:0]))


@pytest.mark.parametrize(("value", "text"), [(500, "500 B"), (3080, "3.08 kB"), (1e6, "1 MB"), (2.6e9, "2.6 GB")])
def test_bytes_are_written_in_powers_of_a_thousand(value, text):
    assert in_bytes(value) == text


def test_the_table_holds_every_auc_at_its_place_and_bold_is_above_chance(performance, cohorts):
    table = performance.copy()
    first = (table["head"] == "linear") & (table["tuning"] == "frozen") & (table["aggregation"] == "fedavg")
    table.loc[first & (table["client"] == "south"), "low"] = 0.49
    figure = auc_table(table, cohorts)
    axes = figure.axes[0]
    cells = [label.get_text() for label in axes.get_yticklabels()]
    assert len(cells) == 36
    assert cells[1] == "Linear, frozen encoder, FedAvg"
    texts = {tuple(text.get_position()): text for text in axes.texts}
    assert len(texts) == 36 * 4
    shades = axes.images[0].get_array()
    for x, client in enumerate([*cohorts, "pooled"]):
        row = table[first & (table["client"] == client)].iloc[0]
        text = texts[x, 1]
        if client == "controls":
            assert text.get_text() == "–"
            assert shades.mask[1, x]
        else:
            assert text.get_text() == f"{row['value']:.2f}"
            assert shades[1, x] == pytest.approx(row["value"])
            assert (text.get_fontweight() == "bold") == (row["low"] > 0.5)
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "north\n18 / 22",
        "south\n9 / 13",
        "controls\n0 / 5",
        "Pooled\n27 / 40",
    ]
    assert "controls: one class only in test: 5 controls, no case: no AUC." in words(figure)
    assert "No cell" in words(auc_table(table.iloc[:0], cohorts))


def test_figures_on_every_colour_can_be_read(performance, cohorts):
    """Contrast of text and ground by WCAG 2.1, at least 4.5 to 1."""
    values = np.linspace(0.0, 1.0, len(performance))
    figure = auc_table(performance.assign(value=values, low=values, high=values), cohorts)
    axes = figure.axes[0]
    image = axes.images[0]

    def luminance(color):
        linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    checked = 0
    for text in axes.texts:
        if text.get_text() == "–":
            continue
        ground = luminance(np.array(image.cmap(image.norm(float(text.get_text())))[:3]))
        ink = 0.0 if text.get_color() == "black" else 1.0
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) >= 4.5, text.get_text()
        checked += 1
    assert checked > 100
