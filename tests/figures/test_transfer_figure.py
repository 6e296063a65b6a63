import numpy as np
import pandas as pd
import pytest

from fedbrain.figures.transfer import transfer
from fedbrain.tables import TRANSFER

COHORTS = ["north", "south", "away"]
VALUES = {("test", "seen"): 0.85, ("test", "unseen"): 0.70, ("all", "unseen"): 0.72}


def row(cohort, tested, model, value, **more):
    result = {"head": "linear", "tuning": "frozen", "aggregation": "fedavg", "cohort": cohort, "kind": "left out"}
    result |= {
        "tested": tested,
        "model": model,
        "metric": "auc",
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
    }
    return result | {"subjects": 20, "positives": 8, "negatives": 12, "seeds": 1} | more


@pytest.fixture
def table():
    rows = []
    for k, cohort in enumerate(["north", "south"]):
        for (tested, model), value in VALUES.items():
            size = {"subjects": 50, "positives": 21, "negatives": 29} if tested == "all" else {}
            rows.append(row(cohort, tested, model, value + 0.01 * k, **size))
            narrow = {"metric": "auc_delong", "low": value - 0.02, "high": value + 0.02}
            rows.append(row(cohort, tested, model, value + 0.01 * k, **size) | narrow)
        rows.append(row(cohort, "test", "difference", -0.15, low=-0.2, high=-0.1, p=0.01))
    rows.append(row("away", "test", "unseen", 0.66, kind="external"))
    rows.append(row("mean", "test", "unseen", 0.71, prediction_low=0.45, prediction_high=0.9, cohorts=2))
    rows.append(row("mean", "test", "seen", np.nan, cohorts=1, note="no mean; south: no AUC"))
    rows.append(row("mean", "test", "difference", -0.15, cohorts=2))
    return pd.DataFrame(rows).reindex(columns=list(TRANSFER)).astype(TRANSFER)


def drawn(figure, gid):
    return [line for line in figure.axes[0].get_lines() if line.get_gid() == gid]


def test_each_cohort_has_its_models_joined_and_the_difference_beside_them(table):
    figure = transfer(table, COHORTS)
    axes = figure.axes[0]
    assert [line.get_xdata()[0] for line in drawn(figure, "seen test")] == pytest.approx([0.85, 0.86])
    unseen = drawn(figure, "unseen test")
    assert [line.get_xdata()[0] for line in unseen] == pytest.approx([0.70, 0.71, 0.66, 0.71])
    assert {line.get_markerfacecolor() for line in unseen} == {"white"}
    assert [line.get_xdata()[0] for line in drawn(figure, "unseen all")] == pytest.approx([0.72, 0.73])
    assert [tuple(line.get_xdata()) for line in drawn(figure, "joined")] == [
        pytest.approx((0.85, 0.70)), pytest.approx((0.86, 0.71))
    ]  # fmt: skip
    # Less than 20 of a class: DeLong's interval; 21 and 29: the bootstrap's.
    widths = {round(float(np.ptp(line.get_xdata())), 3) for line in drawn(figure, "interval")}
    assert widths == {0.04, 0.2}
    assert [text.get_text() for text in axes.texts if text.get_gid() == "difference"] == [
        "−0.15 [−0.20, −0.10]"
    ] * 2 + ["−0.15 [−0.25, −0.05]"]


def test_rows_say_who_was_tested(table):
    figure = transfer(table, COHORTS)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [
        "Linear, frozen encoder, FedAvg",
        "north\ntest 20 (8 cases), all 50 (21)",
        "south\ntest 20 (8 cases), all 50 (21)",
        "away (external)\ntest 20 (8 cases)",
        "mean of 2 cohorts\nrandom effects",
    ]
    (prediction,) = drawn(figure, "prediction")
    assert tuple(prediction.get_xdata()) == pytest.approx((0.45, 0.9))
    assert figure.axes[0].get_xlim()[0] <= 0.4
    assert "Mean (seen, test): no mean; south: no AUC." in figure._supxlabel.get_text()


def test_a_difference_without_a_width_has_no_brackets(table):
    flat = table.copy()
    flat.loc[flat["model"] == "difference", ["value", "low", "high"]] = 0.0
    texts = [text.get_text() for text in transfer(flat, COHORTS).axes[0].texts if text.get_gid() == "difference"]
    assert texts == ["0.00"] * 3


def test_external_cohorts_alone_and_nothing_at_all(table):
    figure = transfer(table[table["kind"] == "external"], COHORTS)
    assert len(drawn(figure, "unseen test")) == 1
    assert not drawn(figure, "joined")
    assert not drawn(transfer(table[:0], COHORTS), "interval")


def test_cells_without_a_model_for_strangers_are_named_and_not_drawn(table):
    own = table.assign(aggregation="ditto")
    own.loc[own["model"] == "unseen", ["value", "low", "high"]] = pd.NA
    figure = transfer(pd.concat([table, own], ignore_index=True), COHORTS)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [label.get_text() for label in transfer(table, COHORTS).axes[0].get_yticklabels()]
    assert figure._supxlabel.get_text().startswith("Without an AUC on such a cohort: Ditto.")
    assert "No cell has an AUC" in transfer(own, COHORTS).axes[0].texts[0].get_text()
