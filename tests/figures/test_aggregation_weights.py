import numpy as np
from matplotlib.text import Text

from fedbrain.figures.aggregation_weights import aggregation_weights
from fedbrain.figures.style import cohort_colors


def words(figure):
    return " | ".join(text.get_text() for text in figure.findobj(Text))


def test_thick_lines_are_means_over_seeds_and_thin_lines_the_seeds(rounds, cohorts):
    figure = aggregation_weights(rounds, cohorts)
    colors = cohort_colors(cohorts)
    for axes, rule in zip(figure.axes, ("fedce", "rate_my_lora")):
        for cohort in cohorts:
            own = rounds[(rounds["aggregation"] == rule) & (rounds["client"] == cohort)]
            lines = [line for line in axes.lines if line.get_color() == colors[cohort] and len(line.get_xdata()) == 6]
            thick = [line.get_ydata() for line in lines if line.get_linewidth() == 2]
            thin = [line.get_ydata() for line in lines if line.get_linewidth() < 1]
            np.testing.assert_allclose(thick, [own.groupby("round")["weight"].mean()])
            np.testing.assert_allclose(thin, [part["weight"] for _, part in own.groupby("seed")])


def test_reference_weights_are_one_over_k_and_the_share_of_scans(rounds, cohorts):
    figure = aggregation_weights(rounds, cohorts, scans={"north": 60, "south": 30, "controls": 10})
    colors = cohort_colors(cohorts)
    for axes in figure.axes:
        triangles = {line.get_color(): line.get_ydata() for line in axes.lines if line.get_marker() == "<"}
        assert [float(np.ravel(triangles[colors[c]])[0]) for c in cohorts] == [0.6, 0.3, 0.1]
        assert any(np.allclose(line.get_ydata(), 1 / 3) for line in axes.lines if line.get_linestyle() == ":")
    assert "FedAvg" in words(figure)
    assert "FedAvg" not in words(aggregation_weights(rounds, cohorts))


def test_a_round_without_a_client_is_a_gap(rounds, cohorts):
    lost = (rounds["round"] == 3) & (rounds["client"] == "north")
    figure = aggregation_weights(rounds.assign(weight=rounds["weight"].mask(lost)), cohorts)
    means = [line for line in figure.axes[0].lines if line.get_color() == cohort_colors(cohorts)["north"]]
    thick = next(line for line in means if line.get_linewidth() == 2)
    assert np.isnan(np.asarray(thick.get_ydata(), dtype=float)).tolist() == [False] * 3 + [True] + [False] * 2


def test_ticks_are_rounds_that_were_run(rounds, cohorts):
    for first in (rounds, rounds[rounds["round"] == 0]):
        for axes in aggregation_weights(first, cohorts).axes:
            assert set(axes.get_xticks()) <= set(first["round"])


def test_rules_without_rounds_say_so(rounds, cohorts):
    figure = aggregation_weights(rounds[rounds["aggregation"] == "fedce"], cohorts)
    figure.draw_without_rendering()
    assert "no rounds of Rate-My-LoRA" in words(figure)
    empty = aggregation_weights(rounds.iloc[:0], cohorts)
    empty.draw_without_rendering()
    assert "no rounds of FedCE" in words(empty)


def test_every_line_of_every_seed_lies_within_the_axes(rounds, cohorts):
    rounds = rounds.copy()
    rounds.loc[(rounds["aggregation"] == "fedce") & (rounds["seed"] == 0) & (rounds["client"] == "north"), "weight"] = (
        0.97
    )
    figure = aggregation_weights(rounds, cohorts)
    for axes in figure.axes:
        assert axes.get_ylim()[1] > 0.97
