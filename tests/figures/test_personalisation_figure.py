import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text

from fedbrain.figures.auc_by_client import auc_by_client
from fedbrain.figures.auc_table import auc_table
from fedbrain.figures.personalisation import personalisation
from fedbrain.figures.style import cohort_colors, shown_name
from fedbrain.tables import PERSONALISATION

COHORTS = ["north", "south", "controls", "away"]
CLIENTS = {
    "north": (90, 40, 18),
    "south": (12, 22, 9),
    "controls": (20, 5, 0),
    "away": (0, 30, 15),
    "pooled": (122, 67, 27),
}
NOTES = {
    "controls": "one class only in test: 5 controls, no case: no AUC",
    "away": "linear/frozen/ditto: 30 test subjects, but no model for them: each client has its own here, and this one has trained none",
}


def words(figure):
    return " | ".join(text.get_text() for text in figure.findobj(Text))


@pytest.fixture
def table():
    """Ditto with a global model of its own, FedPer with FedAvg's."""
    rows, rng = [], np.random.default_rng(0)
    for rule, common in (("ditto", "ditto_global"), ("fedper", "fedavg")):
        for against, other in (("global", common), ("local", "local"), ("centralized", "centralized")):
            for client, (training, subjects, cases) in CLIENTS.items():
                value = None if client in NOTES else rng.uniform(-0.2, 0.2)
                row = {"against": against, "cell_a": f"linear/frozen/{rule}", "cell_b": f"linear/frozen/{other}"}
                row |= {"client": client, "metric": "auc", "difference": value, "training": training}
                row |= {"low": value and value - 0.1, "high": value and value + 0.05, "note": NOTES.get(client)}
                rows.append(row | {"subjects": subjects, "positives": cases, "negatives": subjects - cases})
    return pd.DataFrame(rows).reindex(columns=list(PERSONALISATION)).astype(PERSONALISATION)


def drawn(axes):
    """Value and ends of each interval by what it is of, and the line of its marker."""
    found = {}
    for bar in axes.containers:
        assert isinstance(bar, ErrorbarContainer)
        (segment,) = bar.lines[2][0].get_segments()
        found[bar.lines[0].get_gid()] = (bar.lines[0].get_xdata()[0], *segment[:, 0]), bar.lines[0]
    return found


def test_each_client_has_its_differences_and_intervals(table):
    figure = personalisation(table, COHORTS, "linear", "frozen")
    for axes, rule in zip(figure.axes, ("ditto", "fedper")):
        assert axes.get_title(loc="left").strip() == shown_name(rule)
        rows = table[table["cell_a"].str.endswith(rule) & table["client"].isin(["north", "south"])]
        expected = {
            f"{r['client']} {r['against']}": (r["difference"], r["low"], r["high"]) for r in rows.to_dict("records")
        }
        found = drawn(axes)
        assert set(found) == set(expected)
        for name, (values, line) in found.items():
            assert values == pytest.approx(expected[name])
            client = name.split()[0]
            assert to_rgba(line.get_color()) == to_rgba(cohort_colors(COHORTS)[client])
            assert (line.get_markerfacecolor() == "white") == (client == "south")  # nine cases
        low, high = axes.get_xlim()
        assert low == -high
        assert high > table[["difference", "low", "high"]].abs().max().max()


def test_the_smallest_client_is_at_the_top_with_its_numbers(table):
    axes = personalisation(table, COHORTS, "linear", "frozen").axes[0]
    ticks = {label.get_text().split("\n")[0]: y for y, label in zip(axes.get_yticks(), axes.get_yticklabels())}
    assert sorted(ticks, key=ticks.get, reverse=True) == ["away", "south", "controls", "north"]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert "south\n12 train\n22 test (9 cases)" in labels
    markers = {name: line.get_ydata()[0] for name, (_, line) in drawn(axes).items()}
    assert markers["south global"] > markers["south local"] > markers["south centralized"]
    assert abs(markers["south local"] - ticks["south"]) < 1e-9


def test_who_has_no_difference_says_why(table):
    axes = personalisation(table, COHORTS, "linear", "frozen").axes[0]
    reasons = {text.get_position()[1]: text.get_text() for text in axes.texts if text.get_gid() == "reason"}
    places = {label.get_text().split("\n")[0]: y for y, label in zip(axes.get_yticks(), axes.get_yticklabels())}
    assert reasons == {places["away"]: "no model of its own", places["controls"]: "one class only in test"}


def test_notes_tell_whose_global_model_it_is_and_what_is_rough(table):
    text = words(personalisation(table, COHORTS, "linear", "frozen", level=0.9))
    assert "90 % interval" in text
    assert "FedPer has no global model; the global model is that of FedAvg." in text
    assert "Ditto has no global model" not in text
    assert "Hollow: fewer than 10 cases or controls" in text
    assert "Hollow" not in words(personalisation(table[table["client"] == "north"], COHORTS, "linear", "frozen"))
    assert "No bar" not in text
    flat = table.assign(low=table["difference"], high=table["difference"])
    assert "No bar: the difference is the same in all resamples" in words(
        personalisation(flat, COHORTS, "linear", "frozen")
    )
    assert "is compared" in words(personalisation(table, COHORTS, "conv_s", "frozen"))


def test_a_global_model_is_named_after_its_rule():
    assert shown_name("ditto_global") == "Ditto (global)"


def test_a_cell_without_a_model_for_a_client_does_not_hide_the_clients_subjects(performance, cohorts):
    """Nobody is tested on "south" by the first cell of the table; all others are."""
    first = (performance["aggregation"] == "simpleavg") & (performance["client"] == "south")
    missing = performance.assign(**{c: performance[c].mask(first, 0) for c in ("subjects", "positives", "negatives")})
    missing["value"] = missing["value"].mask(first)
    ticks = [label.get_text() for label in auc_table(missing, cohorts).axes[0].get_xticklabels()]
    assert "south\n9 / 13" in ticks
    assert "22 subjects, 9 cases" in words(auc_by_client(missing, cohorts, "linear", tuning="frozen"))
