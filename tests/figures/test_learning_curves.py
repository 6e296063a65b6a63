import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from fedbrain.figures.learning_curves import learning_curves
from fedbrain.figures.style import client_styles


def words(figure):
    return " | ".join(text.get_text() for text in figure.findobj(Text))


@pytest.fixture
def losses(cohorts):
    rng, rows = np.random.default_rng(5), []
    for aggregation, clients in (("fedavg", cohorts), ("local", cohorts), ("centralized", ["pooled"])):
        for seed in range(2):
            for number in range(1, 7):
                for client in clients:
                    loss, validation = rng.uniform(0.2, 1.0, 2)
                    validation = None if client == "controls" else validation
                    rows.append((aggregation, seed, number, client, loss, validation))
    columns = ["aggregation", "seed", "round", "client", "loss", "validation_loss"]
    return pd.DataFrame(rows, columns=columns).astype({"loss": "Float64", "validation_loss": "Float64"})


BEST = {
    ("fedavg", 0): {"global": 3},
    ("fedavg", 1): {"global": 5},
    ("local", 0): {"north": 1, "south": 6, "controls": 6},
    ("local", 1): {"north": 2, "south": 2, "controls": 6},
    ("centralized", 0): {"pooled": 4},
    ("centralized", 1): {"pooled": 6},
}


def lines(axes, gid, color):
    return [
        np.asarray(line.get_ydata(), float) for line in axes.lines if (line.get_gid(), line.get_color()) == (gid, color)
    ]


def test_thick_lines_are_means_and_thin_lines_seeds_of_either_loss(losses, cohorts):
    figure = learning_curves(losses, cohorts, best_rounds=BEST)
    styles = client_styles(cohorts)
    panels = iter(figure.axes)
    for aggregation in ("fedavg", "local", "centralized"):
        for column in ("loss", "validation_loss"):
            axes = next(panels)
            own = losses[losses["aggregation"] == aggregation].dropna(subset=[column])
            for client in [*cohorts, "pooled"]:
                table = own[own["client"] == client].pivot(index="round", columns="seed", values=column).astype(float)
                means, seeds = (lines(axes, gid, styles[client].color) for gid in ("mean", "seed"))
                if table.empty:
                    assert not means
                else:
                    np.testing.assert_allclose(means, [table.mean(axis=1)])
                    np.testing.assert_allclose(seeds, table.T)


def test_markers_are_the_chosen_rounds_of_each_seed_and_client(losses, cohorts):
    figure = learning_curves(losses, cohorts, best_rounds=BEST)
    styles = client_styles(cohorts)
    for axes, aggregation in zip(figure.axes[1::2], ("fedavg", "local", "centralized")):
        marked = {
            (line.get_color(), *line.get_xydata()[0].tolist()) for line in axes.lines if line.get_gid() == "chosen"
        }
        expected = set()
        for (name, seed), best in BEST.items():
            if name != aggregation:
                continue
            for row in losses[(losses["aggregation"] == name) & (losses["seed"] == seed)].itertuples():
                chosen = best.get(row.client, best.get("global"))
                if row.round == chosen and not pd.isna(row.validation_loss):
                    expected.add((styles[row.client].color, row.round, row.validation_loss))
        assert marked == expected
        assert len(marked) == {"fedavg": 4, "local": 4, "centralized": 2}[aggregation]
    assert not [line for axes in figure.axes[::2] for line in axes.lines if line.get_gid() == "chosen"]


def test_rows_share_a_scale_that_holds_every_seed_and_the_clients_are_counted(losses, cohorts):
    figure = learning_curves(losses, cohorts, best_rounds=BEST, scans={"north": 12, "south": 7, "controls": 4})
    for column, name in ((0, "loss"), (1, "validation_loss")):
        limits = {axes.get_ylim() for axes in figure.axes[column::2]}
        assert len(limits) == 1
        assert limits.pop()[1] > losses[name].max()
    assert "north (12 training scans)" in words(figure)
    assert "all scans pooled" in words(figure)


def test_one_round_and_no_validation_are_still_drawn(losses, cohorts):
    one = losses[losses["round"] == 1].assign(validation_loss=pd.NA)
    figure = learning_curves(one, cohorts, best_rounds=BEST)
    figure.draw_without_rendering()
    assert "not measured" in words(figure)
    assert "No cell has been trained" in words(learning_curves(losses.iloc[:0], cohorts, best_rounds={}))
