import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from fedbrain.evaluation.privacy import privacy
from fedbrain.figures.membership import membership
from fedbrain.tables import MEMBERS


@pytest.fixture(scope="module")
def audited():
    rng, models = np.random.default_rng(0), []
    for _ in range(5):
        parts = []
        for cohort, members, others in (("north", 30, 20), ("south", 24, 16), ("controls", 9, 0)):
            member = (np.arange(members + others) < members).astype(int)
            if models:
                member = (np.arange(members + others) + len(models)) % 2
            subjects = [f"{number:02d}" for number in range(len(member))]
            part = {"cohort": cohort, "subject": subjects, "session": None, "member": member}
            parts.append(pd.DataFrame(part | {"logit": rng.normal(member)}))
        models.append(pd.concat(parts).astype(MEMBERS))
    runs = [(("linear", "frozen", "fedavg"), 0), (("conv_s", "lora", "fedavg"), 0)]
    cohorts = ["north", "south", "controls"]
    found = privacy(dict.fromkeys(runs, models[0]), dict.fromkeys(runs, models[1:]), clients=cohorts, resamples=200)
    return *found, cohorts


def test_a_panel_per_cell_and_attack_shows_the_points_of_the_table_on_logarithmic_axes(audited):
    table, curves, cohorts = audited
    figure = membership(curves, table, cohorts=cohorts)
    assert len(figure.axes) == 4
    for number, axes in enumerate(figure.axes):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        lines = {line.get_gid(): line for line in axes.get_lines()}
        assert set(lines) == {None, "north", "south", "pooled"}
        cell = [("linear", "frozen"), ("conv_s", "lora")][number // 2]
        chosen = (curves["head"] == cell[0]) & (curves["attack"] == ["loss", "lira"][number % 2])
        own = curves[chosen & (curves["client"] == "north")]
        shown = lines["north"].get_xydata()
        visible = (own["fpr"] > 0).to_numpy(bool)
        assert shown[visible, 0] == pytest.approx(own["fpr"].to_numpy(float)[visible])
        assert shown[-1].tolist() == [1, 1]
        assert axes.get_xlim()[0] < 1 / 36  # one non-member of all is on the page


def test_counts_chance_and_who_has_no_curve_are_told(audited):
    table, curves, cohorts = audited
    figure = membership(curves, table, cohorts=cohorts)
    texts = " ".join(text.get_text() for text in figure.findobj(Text))
    assert "Pooled (54 members, 36 non-members)" in texts
    assert "chance" in texts
    assert "No curve without members and non-members: controls" in " ".join(texts.split()).replace("- ", "-")
    assert "pooled AUC 0." in texts


def test_nothing_attacked_is_said(audited):
    table, curves, cohorts = audited
    figure = membership(curves.iloc[:0], table.iloc[:0], cohorts=cohorts)
    assert "No cell has been attacked" in " ".join(text.get_text() for text in figure.findobj(Text))
