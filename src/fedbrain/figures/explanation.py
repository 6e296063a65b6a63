"""What a cell's model looks at: mean maps of cases and of controls on the template, their difference, and whether they mean something.

Slices are the same for every study: chosen for the medial temporal lobe and the ventricles before any map was seen, not where a map is
large. Maps are drawn over the template with an opacity that rises with their size (Taylor et al., NeuroImage 2023), so that
nothing is cut off by a threshold.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from fedbrain.figures.style import COLORS, GUIDE, LINES, MARKERS, PAGE, SMALL, footnotes, say, styled

# Axis and MNI mm: hippocampi, ventricles, both, left hippocampus.
SLICES = (("z", -16), ("z", 18), ("y", -20), ("x", -26))
COLORMAP = "RdBu_r"  # symmetric, and told apart by those who do not see red and green
FWHM = 6.0  # mm, of the smoothing for the eye
SHOWN = {"integrated_gradients": "Integrated gradients", "occlusion": "Occlusion", "rollout": "Attention roll-out"}
UNITS = {  # what a colour stands for, and in what
    "integrated_gradients": ("share in the evidence", "logit per cm³"),
    "occlusion": ("evidence lost when hidden", "logit"),
    "rollout": ("flow against an even one", "%"),
}
MEASURES = {
    "spearman": "rank correlation",
    "spearman_absolute": "rank correlation of sizes",
    "ssim": "structural similarity of sizes",
}
AXES = {"x": 0, "y": 1, "z": 2}


@styled
def explanation(
    maps: Mapping[str, Mapping[str, np.ndarray]],
    table: pd.DataFrame,
    randomisation: pd.DataFrame,
    template: np.ndarray,
    affine: np.ndarray,
    *,
    class_names: Sequence[str] = ("control", "case"),
    baseline: str = "mean",
) -> Figure:
    """Per method slices of the groups' mean maps and the agreement with maps by scrambled weights.

    Args:
        maps: by method, the maps (X, Y, Z) of "case", "control" and "difference".
        table: EXPLANATION of the same cell.
        randomisation: RANDOMISATION; may be empty.
        template: (X, Y, Z) the MNI template's brain on the maps' grid, 0 outside.
        affine: (4, 4) voxel to MNI mm.
    """
    counts = table.drop_duplicates(["cohort", "scan"])["label"].value_counts()
    titles = {
        "case": f"{class_names[1]}, n = {counts.get(1, 0)}",
        "control": f"{class_names[0]}, n = {counts.get(0, 0)}",
        "difference": f"{class_names[1]} − {class_names[0]}",
    }
    heights = [3.0] * len(maps) + [2.4 if len(randomisation) else 0.8]
    figure = Figure(figsize=(PAGE, sum(heights)))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights)
    for number, (part, method) in enumerate(zip(parts, maps)):
        shown = {group: drawn(method, group, values, affine) for group, values in maps[method].items()}
        _draw_method(part, method, shown, template, affine, titles, letter="abc"[number])
    _draw_randomisation(parts[-1], list(maps), randomisation, letter="abcd"[len(maps)])
    footnotes(figure, list(_notes(maps, table, baseline)))
    return figure


def drawn(method: str, group: str, values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A group's map in the units that the figure shows: per cm³ and smoothed, as it is, or in percent about an even flow.

    Of a roll-out the difference between groups has no 1 to be measured against; it is only brought to percent.
    """
    voxel = abs(np.linalg.det(affine[:3, :3]))  # mm³
    if method == "integrated_gradients":
        sigma = FWHM / np.sqrt(8 * np.log(2)) / np.cbrt(voxel)
        return gaussian_filter(values.astype(np.float64), sigma) * 1000 / voxel
    if method == "rollout":
        return 100 * (values - (group != "difference"))
    return values


def _draw_method(part, method: str, shown: Mapping, template, affine, titles: Mapping, letter: str) -> None:
    part.suptitle(f"{letter}  {SHOWN[method]}", x=0.01, ha="left", fontsize=10, fontweight="bold")
    grid = part.subplots(2, 6)
    brain = template > 0.05 * template.max()
    both = np.concatenate([np.abs(shown[group][brain]) for group in ("case", "control")])
    tops = {"case": both, "control": both, "difference": np.abs(shown["difference"][brain])}
    tops = {group: max(float(np.percentile(values, 99.5)), 1e-12) for group, values in tops.items()}
    for column, group in enumerate(("case", "control", "difference")):
        panels = grid[:, 2 * column : 2 * column + 2]
        for axes, (axis, millimetres) in zip(panels.flat, SLICES):
            _draw_slice(axes, shown[group], template, brain, affine, axis, millimetres, tops[group])
        panels[0, 0].set_title(titles[group], loc="left", fontsize=SMALL, fontweight="normal")
    for group, panels in (("case", grid[:, :4]), ("difference", grid[:, 4:])):
        scale = ScalarMappable(Normalize(-tops[group], tops[group]), COLORMAP)
        bar = part.colorbar(
            scale, ax=panels, location="bottom", aspect=30 if group == "case" else 15, pad=0.02, shrink=0.9
        )
        exponent = int(np.floor(np.log10(tops[group]) / 3)) * 3  # 10^-6, 10^-3, 1, ...
        what, unit = UNITS[method]
        factor = f"$10^{{{exponent}}}$ " if exponent else ""
        bar.set_label(f"{what if group == 'case' else 'difference'} ({factor}{unit})", fontsize=SMALL)
        bar.set_ticks(_three_ticks(tops[group]))
        bar.ax.xaxis.set_major_formatter(
            lambda value, _, exponent=exponent: f"{value / 10**exponent:g}".replace("-", "−")
        )
        bar.outline.set_visible(False)


def _three_ticks(top: float) -> list[float]:
    """0 and a round number, at most ``top``, on either side."""
    step = 10.0 ** np.floor(np.log10(top)) / 2
    tick = np.floor(top / step) * step
    return [-tick, 0, tick]


def _draw_slice(axes, values, template, brain, affine, axis: str, millimetres: float, top: float) -> None:
    number = AXES[axis]
    place = int(round((millimetres - affine[number, 3]) / affine[number, number]))
    ends = [affine[i, 3] + affine[i, i] * np.array([-0.5, template.shape[i] - 0.5]) for i in range(3) if i != number]
    extent = (*ends[0], *ends[1])
    under, over, inside = (np.take(array, place, number).T for array in (template, values, brain))
    grey = {
        "cmap": "gray",
        "vmin": -0.8 * template.max(),
        "vmax": 1.1 * template.max(),
    }  # light, so that colours are seen
    axes.imshow(np.ma.masked_where(~inside, under), **grey, origin="lower", extent=extent)
    opacity = np.clip(np.abs(over) / top, 0, 1) * inside
    axes.imshow(over, cmap=COLORMAP, vmin=-top, vmax=top, alpha=opacity, origin="lower", extent=extent)
    # Signs without colours: full lines about what is above half of the scale, dashed ones below minus half.
    for level, style in ((-top / 2, "--"), (top / 2, "-")):
        if (over * inside).min() < level < (over * inside).max():
            axes.contour(
                over * inside,
                levels=[level],
                colors="black",
                linewidths=0.5,
                linestyles=style,
                origin="lower",
                extent=extent,
            )
    found = np.nonzero(np.take(brain, range(brain.shape[number]), number).any(number).T)
    low, high = [], []
    for indices, (start, stop), size in zip(reversed(found), ends, reversed(inside.shape)):
        step = (stop - start) / size
        low.append(start + step * (indices.min() - 3))
        high.append(start + step * (indices.max() + 4))
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.set_axis_off()
    below = {"ha": "center", "va": "top", "transform": axes.transAxes, "fontsize": 7}
    axes.text(0.5, 0.0, f"{axis} = {millimetres:d} mm".replace("-", "−"), **below)
    if axis != "x":
        axes.text(0.02, 0.99, "L", transform=axes.transAxes, fontsize=7, va="top", color=GUIDE)
        axes.text(0.98, 0.99, "R", transform=axes.transAxes, fontsize=7, va="top", ha="right", color=GUIDE)


def _draw_randomisation(part, methods: Sequence[str], randomisation: pd.DataFrame, letter: str) -> None:
    part.suptitle(
        f"{letter}  Weights scrambled from the output to the input: agreement with the maps above",
        x=0.01,
        ha="left",
        fontsize=10,
        fontweight="bold",
    )
    panels = part.subplots(1, len(MEASURES), sharey=True)
    if not len(randomisation):
        for axes in panels:
            axes.set_axis_off()
        return say(panels[1], "not checked: evaluation.explanation.randomised is 0", width=80)
    stages = randomisation.drop_duplicates("number").sort_values("number")
    scans = randomisation.drop_duplicates(["cohort", "scan"])
    for axes, (measure, title) in zip(panels, MEASURES.items()):
        axes.axhline(0, color=GUIDE, linewidth=0.8)
        axes.axhline(1, color=GUIDE, linewidth=0.8, linestyle=":")
        for place, method in enumerate(methods):
            rows = randomisation[randomisation["method"] == method].dropna(subset=[measure])
            means = rows.groupby("number")[measure].mean()
            places = np.r_[0, means.index.to_numpy(int)]
            values = np.r_[1.0, means.to_numpy(float)]
            look = {"color": COLORS[place], "marker": MARKERS[place], "linestyle": LINES[place]}
            axes.plot(places, values, label=SHOWN[method], **look)
            axes.plot(rows["number"], rows[measure], ".", color=COLORS[place], markersize=3, alpha=0.6)
        axes.set_title(title, fontsize=SMALL, fontweight="normal")
        names = ["none", *(stage.replace("patch embedding", "patches") for stage in stages["stage"])]
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    least = float(randomisation[list(MEASURES)].min().min())  # the panels share the axis
    panels[0].set_ylim(min(-0.25, least - 0.05), 1.08)
    panels[0].set_ylabel(f"mean of {len(scans)} scan{'s' * (len(scans) != 1)}")
    part.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods))


def _notes(maps: Mapping, table: pd.DataFrame, baseline: str):
    gradients = table[table["method"] == "integrated_gradients"]
    if "integrated_gradients" in maps and len(gradients):
        error, change = (
            gradients["completeness_error"].max(),
            (gradients["evidence"] - gradients["reference_evidence"]).abs(),
        )
        yield (
            f"Integrated gradients: smoothed with {FWHM:g} mm for the eye; their sum is off by {error:.2g} at most, where the evidence "
            f"differs from that of the reference by {change.median():.2g} (median)."
        )
    if set(maps) - {"rollout"}:
        reference = "its mean in all of the brain" if baseline == "mean" else "the background everywhere"
        yield f"Evidence is the logit of a {'case'} less that of a control; the reference of a scan has {reference}."
    if "rollout" in maps:
        pads = table.loc[table["method"] == "rollout", "pads"].mean()
        yield (
            "Roll-out knows neither head nor class: it shows where attention goes, not what speaks for a case"
            + (f"; {pads:.0%} of it goes to the pads of windows and is left out." if pads > 0.005 else ".")
        )
    yield "Full lines: above half of the scale; dashed: below minus half. Left is at the left."
