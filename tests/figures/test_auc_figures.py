import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text

from fedbrain.figures.auc_by_client import auc_by_client
from fedbrain.figures.auc_by_head import auc_by_head
from fedbrain.figures.auc_by_tuning import auc_by_tuning
from fedbrain.figures.style import auc_floor


def words(figure):
    return " | ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))


def drawn_intervals(axes):
    """(value, low, high) of every error bar in a panel, along the axis that it runs on."""
    result = []
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer):
            point, _, (bar,) = container
            ends = bar.get_segments()[0]
            along = int(container.has_yerr)
            result.append((float(point.get_xydata()[0, along]), *sorted(ends[:, along].tolist())))
    return sorted(result)


def table_intervals(rows):
    return sorted(map(tuple, rows.dropna(subset=["value"])[["value", "low", "high"]].to_numpy(float).tolist()))


def test_auc_by_head_shows_the_tables_values_and_intervals(performance, cohorts):
    figure = auc_by_head(performance, cohorts)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["frozen encoder, FedAvg", "LoRA, FedAvg"]
    for axes, tuning in zip(figure.axes, ("frozen", "lora")):
        rows = performance[(performance["tuning"] == tuning) & (performance["aggregation"] == "fedavg")]
        np.testing.assert_allclose(drawn_intervals(axes), table_intervals(rows))
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["Linear", "CONV S", "CONV L"]


def test_auc_by_tuning_shows_the_tables_values_and_intervals(performance, cohorts):
    figure = auc_by_tuning(performance, cohorts)
    titles = ["Linear, FedAvg", "CONV S, FedAvg", "CONV L, FedAvg"]
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.axison] == titles
    for axes, head in zip(figure.axes, ("linear", "conv_s", "conv_l")):
        rows = performance[(performance["head"] == head) & (performance["aggregation"] == "fedavg")]
        np.testing.assert_allclose(drawn_intervals(axes), table_intervals(rows))
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["frozen encoder", "LoRA"]


def with_references(performance):
    rows = performance[(performance["head"] == "linear") & (performance["tuning"] == "frozen")]
    resnet = rows[rows["aggregation"] == "fedavg"].assign(head="resnet18", tuning="full")
    ncc = rows[rows["aggregation"] == "simpleavg"].assign(head="ncc")
    return pd.concat([performance, resnet, ncc], ignore_index=True)


@pytest.mark.parametrize("figure_of", [auc_by_head, auc_by_tuning])
def test_references_stand_hollow_in_every_panel_with_their_own_aggregation(figure_of, performance, cohorts):
    table = with_references(performance)
    figure = figure_of(table, cohorts, references=["resnet18", "ncc"])
    plain = figure_of(performance, cohorts)
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in drawn] == [a.get_title(loc="left") for a in plain.axes if a.axison]
    for axes in drawn:
        labels = [tick.get_text() for tick in axes.get_xticklabels()]
        assert labels[-2:] == ["ResNet18", "NCC\nSimpleAvg"]
        hollow = [
            c[0].get_xdata()[0] > len(labels) - 2.5 for c in axes.containers if c[0].get_markerfacecolor() == "white"
        ]
        assert len(hollow) == 2 * 3  # two references, three clients with an AUC
        assert all(hollow)


def test_references_alone_have_a_panel_too(performance, cohorts):
    table = with_references(performance)
    figure = auc_by_head(table[table["head"].isin(["resnet18", "ncc"])], cohorts, references=["resnet18", "ncc"])
    assert len(drawn_intervals(figure.axes[0])) == 6


def test_one_tuning_is_nothing_to_compare(performance, cohorts):
    assert "No head was trained with several tunings" in words(
        auc_by_tuning(performance[performance["tuning"] == "frozen"], cohorts)
    )


def test_auc_by_head_names_baselines_counts_and_missing_values(performance, cohorts):
    figure = auc_by_head(performance, cohorts)
    text = words(figure)
    assert "site only, pooled (0.61)" in text
    assert "north (40 subjects, 18 cases)" in text
    assert "controls: one class only in test: 5 controls, no case: no AUC." in text
    assert [t.get_text() for axes in figure.axes for t in axes.texts] == ["no AUC"] * 6  # three heads, two panels


def test_auc_by_client_shows_each_client_its_own_rows_and_says_why_one_is_empty(performance, cohorts):
    figure = auc_by_client(performance, cohorts, "conv_s", tuning="lora")
    panels = dict(zip([*cohorts, "pooled"], figure.axes))
    for client, axes in panels.items():
        rows = performance.query("head == 'conv_s' and tuning == 'lora' and client == @client")
        assert len(rows) == 6
        if client == "controls":
            assert drawn_intervals(axes) == []
            assert "no case: no AUC" in words(axes)
        else:
            np.testing.assert_allclose(drawn_intervals(axes), table_intervals(rows))


def test_references_stand_apart_from_the_aggregations(performance, cohorts):
    axes = auc_by_client(performance, cohorts, "conv_s").axes[0]
    ticks = {tick.get_text(): place for tick, place in zip(axes.get_yticklabels(), axes.get_yticks())}
    federated = [ticks[name] for name in ("SimpleAvg", "FedAvg", "FedCE", "Rate-My-LoRA")]
    references = [ticks[name] for name in ("Centralized", "Local only")]
    assert min(federated) - max(references) > 1
    faces = {c[0].get_ydata()[0]: c[0].get_markerfacecolor() for c in axes.containers}
    assert {faces[place] for place in references} == {"white"}
    assert "white" not in {faces[place] for place in federated}


def test_the_auc_axis_shows_chance_and_says_where_it_starts(performance, cohorts):
    assert auc_floor(performance) == pytest.approx(0.4)
    assert "(axis starts at 0.4)" in words(auc_by_head(performance, cohorts))
    assert "AUC axes start at 0.4." in words(auc_by_client(performance, cohorts, "linear"))
    low = performance.assign(low=0.05)
    assert auc_floor(low) == 0
    assert "starts at" not in words(auc_by_head(low, cohorts))


def test_nothing_to_draw_is_said_in_words(performance, cohorts):
    assert "No cell with aggregation Krum" in words(auc_by_head(performance, cohorts, aggregation="krum"))
    assert "No cell with head ncc" in words(auc_by_client(performance, cohorts, "ncc")).replace("NCC", "ncc")
    empty = performance.iloc[:0]
    assert "No cell" in words(auc_by_head(empty, cohorts))
    assert "No cell" in words(auc_by_client(empty, cohorts, "linear"))


def test_a_table_without_any_auc_is_drawn_as_reasons(performance, cohorts):
    rows = performance[performance["client"] == "controls"]
    for figure in (auc_by_head(rows, ["controls"]), auc_by_client(rows, ["controls"], "linear")):
        figure.draw_without_rendering()
        assert "no case: no AUC" in words(figure)
