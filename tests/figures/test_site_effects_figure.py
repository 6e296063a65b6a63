"""Each person stands where the table says, harmonized views show held-out scans only, and everything measured has a line."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from fedbrain.figures.site_effects import site_effects
from fedbrain.figures.style import cohort_styles, save_figure
from fedbrain.tables import SITE_EFFECTS, SITE_PROJECTION, SITE_VARIANCE

COHORTS = ["north", "south"]


def make_tables(harmonized=False):
    rows, parts, points = [], [], []
    measured = [("mean", "none", "all"), ("quality", "none", "all")]
    if harmonized:
        measured += [("mean", "none", "held out"), ("mean", "combat", "held out")]
    generator = np.random.default_rng(0)
    for place, (features, harmonization, side) in enumerate(measured):
        for label in ("all", "controls"):
            key = {"features": features, "harmonization": harmonization, "side": side, "label": label}
            value = 0.9 - 0.1 * place - (0.05 if label == "controls" else 0)
            rows.append(
                key
                | {
                    "cohort": "all",
                    "metric": "balanced_accuracy",
                    "value": value,
                    "low": value - 0.1,
                    "high": value + 0.05,
                }
                | {"chance": 0.5, "scans": 12, "subjects": 12, "folds": 3, "note": "one thing" if place == 1 else None}
            )
            omega = generator.uniform(-0.1, 0.6, 30)
            parts.append(pd.DataFrame(key | {"feature": range(30), "eta_squared": omega + 0.1, "omega_squared": omega}))
    for harmonization in ["none"] + ["combat"] * harmonized:
        for k in range(12):
            point = {"cohort": COHORTS[k % 2], "label": k // 2 % 2, "split": "train" if k < 6 else "test"}
            point |= {"first": k + 100.0 * (harmonization == "combat"), "second": -k, "first_share": 0.4}
            points.append(point | {"second_share": 0.2, "harmonization": harmonization})
    told = pd.DataFrame(rows)[list(SITE_EFFECTS)].astype(SITE_EFFECTS)
    variance = pd.concat(parts)[list(SITE_VARIANCE)].astype(SITE_VARIANCE)
    return told, variance, pd.DataFrame(points)[list(SITE_PROJECTION)].astype(SITE_PROJECTION)


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.get_axes()}


def dots(axes):
    """Points by colour and fill."""
    found = {}
    for line in axes.get_lines():
        if line.get_linestyle() == "None" and len(line.get_xdata()):
            key = (to_rgba(line.get_color()), to_rgba(line.get_markerfacecolor()))
            found.setdefault(key, []).extend(zip(line.get_xdata(), line.get_ydata()))
    return found


def test_points_have_the_colour_of_their_cohort_and_cases_are_hollow():
    figure = site_effects(*make_tables(), COHORTS)
    found = dots(panels(figure)["as computed"])
    north = to_rgba(cohort_styles(COHORTS)["north"].color)
    assert sorted(x for x, _ in found[north, north]) == [0, 4, 8]  # even numbers are of the north, 0 1 4 5 8 9 controls
    assert sorted(x for x, _ in found[north, to_rgba("white")]) == [2, 6, 10]
    assert sum(len(points) for points in found.values()) == 12


def test_with_a_harmonization_before_and_after_show_the_scans_that_it_was_not_fitted_on():
    axes = panels(site_effects(*make_tables(harmonized=True), COHORTS))
    before, after = axes["as computed"], axes["combat"]
    assert sorted(x for points in dots(before).values() for x, _ in points) == [6, 7, 8, 9, 10, 11]
    assert sorted(x for points in dots(after).values() for x, _ in points) == [106, 107, 108, 109, 110, 111]
    assert before.get_xlim() == after.get_xlim()
    labels = [text.get_text() for text in axes["variance between cohorts"].get_legend().get_texts()]
    assert labels == ["as computed", "combat"]


def test_every_measurement_has_a_line_with_its_numbers_and_chance():
    axes = panels(site_effects(*make_tables(harmonized=True), COHORTS))["how well the cohort can be told"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "all scans",
        "channel means",
        "scan quality",
        "validation and test scans",
        "channel means, as computed",
        "channel means, combat",
    ]
    texts = [text.get_text() for text in axes.texts]
    assert {"0.90 / 0.85", "0.80 / 0.75", "0.70 / 0.65", "0.60 / 0.55"} <= set(texts)
    chance = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
    assert {x for line in chance for x in line.get_xdata()} == {0.5}


def test_the_distribution_is_that_of_the_channels():
    told, variance, projection = make_tables()
    axes = panels(site_effects(told, variance, projection, COHORTS))["variance between cohorts"]
    curve = next(line for line in axes.get_lines() if line.get_label() == "means")
    mine = variance[(variance["features"] == "mean") & (variance["label"] == "all")]["omega_squared"].to_numpy(float)
    for x, y in zip(curve.get_xdata(), curve.get_ydata()):
        assert y == pytest.approx(np.mean(mine <= x))


def test_a_study_in_which_nothing_can_be_told_says_so(tmp_path):
    told, variance, projection = make_tables()
    figure = site_effects(told.assign(value=pd.NA).astype(SITE_EFFECTS), variance, projection, COHORTS)
    assert "fewer than two cohorts" in " ".join(figure.axes[0].texts[0].get_text().split())
    save_figure(figure, tmp_path / "a.svg", tmp_path / "a.png")


def test_the_same_tables_give_the_same_bytes(tmp_path):
    for name in "ab":
        figure = site_effects(*make_tables(harmonized=True), COHORTS)
        save_figure(figure, tmp_path / f"{name}.svg", tmp_path / f"{name}.png", alarm="Untrained encoder")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
