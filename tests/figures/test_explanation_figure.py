"""The figure of explanation maps: what stands in its images, its scales and its lines."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from fedbrain.figures.explanation import SLICES, drawn, explanation
from fedbrain.tables import EXPLANATION, RANDOMISATION

SHAPE = (32, 36, 30)
AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])  # voxels of 216 mm³
AFFINE[:3, 3] = (-93, -122, -82)


@pytest.fixture
def template():
    values = np.zeros(SHAPE, np.float32)
    values[4:28, 4:32, 4:26] = 0.8
    return values


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    case, control = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    flow = {"case": np.full(SHAPE, 1.5, np.float32), "control": np.full(SHAPE, 0.9, np.float32)}
    return {
        "occlusion": {"case": case, "control": control, "difference": case - control},
        "rollout": flow | {"difference": flow["case"] - flow["control"]},
    }


@pytest.fixture
def table():
    rows = [
        ("a", "s1", 1, "occlusion"),
        ("a", "s1", 1, "rollout"),
        ("a", "s2", 0, "occlusion"),
        ("b", "s1", 0, "occlusion"),
    ]
    frame = pd.DataFrame(rows, columns=["cohort", "scan", "label", "method"])
    return frame.assign(pads=0.25).reindex(columns=list(EXPLANATION)).astype(EXPLANATION)


@pytest.fixture
def randomisation():
    rows = [
        ("a", scan, "occlusion", number, stage, value)
        for scan, shift in (("s1", 0.1), ("s2", -0.1))
        for number, stage, value in ((1, "head", 0.5), (2, "patch embedding", 0.2))
        for value in [value + shift]
    ]
    frame = pd.DataFrame(rows, columns=["cohort", "scan", "method", "number", "stage", "spearman"])
    frame = frame.assign(spearman_absolute=0.0, ssim=frame["spearman"] / 2)
    return frame.reindex(columns=list(RANDOMISATION)).astype(RANDOMISATION)


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_each_slice_is_cut_where_it_says(maps, table, randomisation, template):
    figure = explanation(maps, table, randomisation, template, AFFINE)
    first, second, _ = figure.subfigs
    panels = [axes for axes in first.axes if len(axes.images) == 2]
    assert len(panels) == 12
    by_group = {"case": panels[0:2] + panels[6:8], "difference": panels[4:6] + panels[10:12]}
    for group, axes_of in by_group.items():
        for axes, (axis, millimetres) in zip(axes_of, SLICES):
            number = "xyz".index(axis)
            place = round((millimetres - AFFINE[number, 3]) / 6)
            cut = np.take(maps["occlusion"][group], place, number).T
            np.testing.assert_allclose(axes.images[1].get_array(), cut)
            left, right, bottom, top = axes.images[1].get_extent()
            across, up = (i for i in range(3) if i != number)
            assert (left, right) == (AFFINE[across, 3] - 3, AFFINE[across, 3] + 6 * SHAPE[across] - 3)
            assert (bottom, top) == (AFFINE[up, 3] - 3, AFFINE[up, 3] + 6 * SHAPE[up] - 3)
    limits = {axes.images[1].get_clim() for axes in panels}
    assert len(limits) == 2  # one scale for both groups, one for the difference
    assert all(low == -high for low, high in limits)
    flow = [axes.images[1].get_array() for axes in second.axes if len(axes.images) == 2]
    assert flow[0].max() == pytest.approx(50)  # percent above an even flow
    assert flow[2].max() == pytest.approx(-10)
    assert flow[4].max() == pytest.approx(60)


def test_opacity_rises_with_size_and_ends_at_the_brain(maps, table, randomisation, template):
    figure = explanation(maps, table, randomisation, template, AFFINE)
    axes = next(axes for axes in figure.subfigs[0].axes if len(axes.images) == 2)
    values, opacity = np.asarray(axes.images[1].get_array()), axes.images[1].get_alpha()
    inside = ~np.ma.getmaskarray(axes.images[0].get_array())
    assert (opacity[~inside] == 0).all()
    top = axes.images[1].get_clim()[1]
    np.testing.assert_allclose(opacity[inside], np.minimum(np.abs(values[inside]) / top, 1))


def test_groups_have_their_numbers_and_the_check_its_means(maps, table, randomisation, template):
    figure = explanation(maps, table, randomisation, template, AFFINE, class_names=["healthy", "dementia"])
    said = texts(figure)
    assert {"dementia, n = 1", "healthy, n = 2", "dementia − healthy"} <= set(said)
    assert any("25% of it goes to the pads" in text.replace("\n   ", " ") for text in said)
    correlation, *_, similarity = [axes for axes in figure.subfigs[-1].axes]
    line = next(line for line in correlation.lines if line.get_label() == "Occlusion")
    np.testing.assert_allclose(line.get_ydata(), [1, 0.5, 0.2])
    line = next(line for line in similarity.lines if line.get_label() == "Occlusion")
    np.testing.assert_allclose(line.get_ydata(), [1, 0.25, 0.1])
    assert [tick.get_text() for tick in correlation.get_xticklabels()] == ["none", "head", "patches"]


def test_no_point_of_the_check_is_outside_its_axes(maps, table, randomisation, template):
    randomisation["spearman"] -= 1.2
    figure = explanation(maps, table, randomisation, template, AFFINE)
    axes = figure.subfigs[-1].axes[0]
    low, high = axes.get_ylim()
    drawn = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    assert low < drawn.min() < -0.9
    assert drawn.max() < high


def test_without_a_check_the_figure_says_so(maps, table, randomisation, template):
    figure = explanation(maps, table, randomisation[:0], template, AFFINE)
    assert any("not checked" in text for text in texts(figure))


def test_gradients_are_shown_per_volume_of_tissue():
    values = np.full(SHAPE, 0.01)  # logit per voxel of 216 mm³
    found = drawn("integrated_gradients", "case", values, AFFINE)
    np.testing.assert_allclose(found, 0.01 * 1000 / 216, rtol=1e-6)
    point = np.zeros(SHAPE)
    point[16, 18, 15] = 1
    smooth = drawn("integrated_gradients", "case", point, AFFINE)
    assert smooth.sum() * 216 / 1000 == pytest.approx(1, rel=1e-3)
    assert smooth[17, 18, 15] == pytest.approx(
        smooth.max() / 2**4, rel=0.15
    )  # a voxel is as wide as the half maximum: 2^-(2 d/w)^2
