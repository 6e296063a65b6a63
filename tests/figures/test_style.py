import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fedbrain.figures.aggregation_weights import aggregation_weights
from fedbrain.figures.auc_by_client import auc_by_client
from fedbrain.figures.auc_by_cost import auc_by_cost
from fedbrain.figures.auc_by_head import auc_by_head
from fedbrain.figures.auc_forest import auc_forest
from fedbrain.figures.auc_table import auc_table
from fedbrain.figures.calibration_curves import calibration_curves
from fedbrain.figures.communication import communication
from fedbrain.figures.intensity import intensity_profiles
from fedbrain.figures.learning_curves import learning_curves
from fedbrain.figures.roc_curves import roc_curves
from fedbrain.figures.style import (
    STYLE,
    client_styles,
    cohort_colors,
    cohort_styles,
    save_figure,
    short_name,
    text_figure,
)
from fedbrain.tables import CALIBRATION


def a_curve():
    """Of two cells with two seeds each."""
    x = np.linspace(0, 1, 11)
    rows = {"tuning": "frozen", "aggregation": "fedavg", "fpr": x, "tpr": np.sqrt(x), "low": x, "high": 1.0}
    parts = [pd.DataFrame(rows | {"head": h, "seed": s}) for h in ("linear", "conv_s") for s in (pd.NA, 0, 1)]
    return pd.concat(parts).astype({"seed": "Int64"})


def a_calibration():
    rows = {
        "tuning": "frozen",
        "aggregation": "fedavg",
        "client": "pooled",
        "bin": [1, 2, 3],
        "scans": 9,
        "subjects": 9,
    }
    rows |= {"score": [0.1, 0.5, 0.9], "share": [0.2, 0.4, 0.7], "low": 0.1, "high": 0.9, "cases": [2, 4, 6]}
    rows["note"] = "3 subjects in a bin: a curve for the eye alone"
    parts = [pd.DataFrame(rows | {"head": h, "seed": s}) for h in ("linear", "conv_s") for s in (0, 1)]
    return pd.concat(parts).reindex(columns=list(CALIBRATION)).astype(CALIBRATION)


@pytest.fixture
def figures(performance, cohorts, histograms, rounds, efficiency):
    return {
        "auc_by_head": lambda: auc_by_head(performance, cohorts),
        "auc_by_client": lambda: auc_by_client(performance, cohorts, "conv_s"),
        "intensity_profiles": lambda: intensity_profiles(histograms, cohorts),
        "aggregation_weights": lambda: aggregation_weights(
            rounds, cohorts, scans={"north": 90, "south": 40, "controls": 20}
        ),
        "auc_forest": lambda: auc_forest(performance),
        "learning_curves": lambda: learning_curves(
            rounds.assign(loss=rounds["weight"], validation_loss=rounds["weight"]),
            cohorts,
            best_rounds={("fedce", seed): {"global": seed} for seed in range(3)},
        ),
        "auc_table": lambda: auc_table(performance, cohorts),
        "auc_by_cost": lambda: auc_by_cost(performance, efficiency),
        "communication": lambda: communication(efficiency),
        "roc_curves": lambda: roc_curves(a_curve(), performance),
        "calibration_curves": lambda: calibration_curves(a_calibration(), performance),
        "text": lambda: text_figure("nothing to draw"),
    }


NAMES = ["auc_by_head", "auc_by_client", "intensity_profiles", "aggregation_weights", "text"]
NAMES += ["auc_forest", "learning_curves", "auc_table", "auc_by_cost", "roc_curves", "calibration_curves"]
NAMES += ["communication"]


def shown_texts(figure):
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_figure_drawn_twice_has_the_same_bytes(figures, name, tmp_path):
    for folder in ("a", "b"):
        save_figure(figures[name](), tmp_path / folder / "figure.svg", tmp_path / folder / "figure.png")
    for suffix in ("svg", "png"):
        first, second = ((tmp_path / folder / f"figure.{suffix}").read_bytes() for folder in ("a", "b"))
        assert first == second
    svg = (tmp_path / "a" / "figure.svg").read_text()
    assert "<text" not in svg  # outlines: the same picture where the font is not installed
    assert "<dc:date>" not in svg


@pytest.mark.parametrize("name", NAMES)
def test_every_text_is_legible_at_the_width_of_a_page(figures, name):
    figure = figures[name]()
    with mpl.rc_context(STYLE):
        figure.draw_without_rendering()
    assert figure.get_figwidth() <= 7.5
    assert min(text.get_fontsize() for text in shown_texts(figure)) >= 9


@pytest.mark.parametrize("name", NAMES)
def test_legend_footnotes_and_panels_do_not_overlap(figures, name):
    figure = figures[name]()
    with mpl.rc_context(STYLE):  # ticks are made when they are first drawn
        figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes if axes.axison]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    boxes += [text.get_window_extent() for text in figure.texts]
    for n, box in enumerate(boxes):
        assert box.xmin >= -1
        assert box.ymin >= -1
        assert box.xmax <= figure.bbox.xmax + 1
        assert box.ymax <= figure.bbox.ymax + 1
        for other in boxes[:n]:
            shared = mpl.transforms.Bbox.intersection(box, other)
            assert shared is None or min(shared.width, shared.height) < 3, (n, shared)


@pytest.mark.parametrize("name", NAMES)
def test_drawing_leaves_the_users_matplotlib_settings_alone(figures, name):
    before = dict(mpl.rcParams)
    assert isinstance(figures[name](), Figure)
    assert dict(mpl.rcParams) == before


def test_a_cohort_keeps_its_colour_and_no_two_look_alike():
    cohorts = [f"c{n}" for n in range(40)]
    styles = cohort_styles(cohorts)
    assert len({(s.color, s.marker, str(s.line)) for s in styles.values()}) == 40
    assert len(set(cohort_colors(cohorts[:8]).values())) == 8
    assert len({s.marker for s in cohort_styles(cohorts[:8]).values()}) == 8
    assert cohort_styles(cohorts[:3]) == {cohort: styles[cohort] for cohort in cohorts[:3]}
    assert client_styles(cohorts[:3])["pooled"].color not in cohort_colors(cohorts).values()


def test_a_long_name_keeps_both_ends():
    assert short_name("hospital", 8) == "hospital"
    assert short_name("university_hospital_north", 11) == "unive…north"


def test_an_alarm_stands_beside_the_figure_and_covers_nothing(tmp_path):
    import matplotlib.image as image
    from matplotlib.figure import Figure

    def saved(name, alarm):
        figure = Figure(figsize=(4, 2), layout="constrained")
        figure.subplots().plot([0, 1], [0, 1], label="line")
        figure.legend(loc="outside upper center")
        save_figure(figure, tmp_path / f"{name}.svg", tmp_path / f"{name}.png", alarm=alarm)
        return image.imread(tmp_path / f"{name}.png")

    def red(pixels):
        return (pixels[..., 0] > 0.5) & (pixels[..., 1] < 0.2) & (pixels[..., 2] < 0.4)

    plain, alarmed = saved("plain", None), saved("alarmed", "Untrained encoder")
    assert alarmed.shape[0] == plain.shape[0]
    assert alarmed.shape[1] - plain.shape[1] == 50  # a quarter of an inch at 200 dots per inch
    assert red(alarmed[:, plain.shape[1] :]).sum() > 50
    assert not red(alarmed[:, : plain.shape[1]]).any()
