"""Figures within a page: as data, with words that tell what they show to who does not see them."""

import base64
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import wrap

import pandas as pd
from PIL import Image

from fedbrain.report.html import Html, join
from fedbrain.report.material import POOLED, SITE_ONLY, Material, shown
from fedbrain.report.numbers import counted, listed, words

LARGEST = 120_000  # bytes of an SVG; a larger one is drawn from its PNG (ours)
TEXT = 4000  # characters of data in a line of the page: a page within Snakemake's report may have no long lines


@dataclass(frozen=True)
class Kind:
    """A kind of figure: its title, how to read it, and what it says in words."""

    title: str
    read: str
    alt: Callable[[Material, str], str]


def figure(material: Material, name: str) -> Html:
    """A figure of the study by the name of its file; nothing where there is none."""
    data = material.figures.get(name)
    if data is None:
        return Html("")
    kind, of = kind_of(name)
    title = kind.title + (f", {of.replace('-', ', ')}" if of else "")
    alt = f"{title}. {kind.alt(material, of)}".strip()
    return join(
        Html(f'<figure id="figure-{escape(name)}">\n'),
        picture(data, alt),
        Html("\n<figcaption>"),
        Html(f"<strong>{escape(title)}.</strong> "),
        f"{kind.read} ",
        Html(f'<span class="file">results/figures/{escape(name)}.svg</span></figcaption>\n</figure>\n'),
    )


def figures(material: Material, prefix: str) -> Html:
    """All figures of one kind."""
    return join(*(figure(material, name) for name in material.figures if kind_of(name)[0] is KINDS[prefix]))


def kind_of(name: str) -> tuple[Kind, str]:
    """What kind of figure a file's name says, and of which head and tuning or encoder."""
    prefix, _, of = name.partition("-")
    return KINDS.get(prefix, Kind(prefix.replace("_", " ").capitalize(), "", lambda material, of: "")), of


def further(material: Material) -> Html:
    """Figures of a kind that no section knows."""
    return join(*(figure(material, name) for name in material.figures if name.partition("-")[0] not in KINDS))


def picture(data: bytes, alt: str) -> Html:
    """An SVG or a WebP as an image."""
    kind, size = ("image/webp", "") if data[:4] == b"RIFF" else ("image/svg+xml", _size(data))
    lines = "\n".join(wrap(base64.b64encode(data).decode(), TEXT))
    return Html(
        f'<div class="picture"><img alt="{escape(alt)}"{size} loading="lazy" decoding="async" src="data:{kind};base64,\n{lines}"></div>'
    )


def slim(svg: str) -> str:
    """The same picture in fewer bytes: coordinates (not scales) to a hundredth of a point, no comments, metadata and line breaks."""
    svg = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"(?<!scale\()(?<=[\s\"(,MLQCHVz-])(\d+\.\d{3,})",
        lambda number: f"{float(number[1]):.2f}".rstrip("0").rstrip("."),
        svg,
    )
    return re.sub(r"\s+", " ", re.sub(r">\s+<", "><", svg)).strip()


def smaller(path: str | os.PathLike) -> bytes:
    """A figure's SVG or, where that is large and its PNG beside it takes less, a WebP of the same pixels."""
    path = Path(path)
    svg = slim(path.read_text(encoding="utf-8")).encode()
    png = path.with_suffix(".png")
    if len(svg) <= LARGEST or not png.is_file():
        return svg
    stream = io.BytesIO()
    with Image.open(png) as image:
        image.save(stream, "WEBP", lossless=True)
    return min(svg, stream.getvalue(), key=len)


def _size(svg: bytes) -> str:
    found = re.search(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    if not found:
        return ""
    # Points of the figure as pixels of 96 to the inch.
    return ' width="{:.0f}" height="{:.0f}"'.format(*(float(number) * 4 / 3 for number in found.groups()))


def _ends(rows: dict, name: Callable = shown) -> str:
    """The highest and the lowest of some values with their intervals, in words."""
    known = {key: row for key, row in rows.items() if row is not None and not pd.isna(row["value"])}
    if not known:
        return "No value."
    high, low = (pick(known, key=lambda key: known[key]["value"]) for pick in (max, min))
    if high == low:
        return f"{name(high)}: {words(known[high])}."
    return f"Highest: {name(high)}, {words(known[high])}. Lowest: {name(low)}, {words(known[low])}."


def _pooled(material: Material, of: str) -> str:
    site = material.site_only
    told = f" Knowing the cohort alone gives {words(site)}." if site is not None else ""
    return f"{counted(len(material.pooled), 'cell')} on all test subjects. {_ends(material.pooled)}{told}"


def _every_client(material: Material, of: str) -> str:
    rows = {key: row for key, row in material.aucs.items() if key[:3] != SITE_ONLY and key[3] != POOLED}
    if of:
        rows = {key: row for key, row in rows.items() if f"{key[0]}-{key[1]}" == of}
    missing = sorted({key[3] for key, row in rows.items() if pd.isna(row["value"])})
    lacking = f" Without a value: {listed(missing)}." if missing else ""
    return f"By cohort: {_ends(rows, lambda key: f'{key[3]}, {shown(key[:3])}')}{lacking}"


def _drawn(material: Material, of: str) -> str:
    rows = {cell: row for cell, row in material.pooled.items() if cell[2] == material.drawn}
    return f"Under {material.drawn}, on all test subjects: {_ends(rows)}"


def _calibration(material: Material, of: str) -> str:
    slopes = {key[:3]: row for key, row in material.metric("calibration_slope").items() if key[3] == POOLED}
    slopes = {cell: row for cell, row in slopes.items() if cell[2] == material.drawn}
    return f"Calibration slope (1 is right): {_ends(slopes)}"


def _cost(material: Material, of: str) -> str:
    sent = material.efficiency[material.efficiency["bytes_run"] > 0]["bytes_run"]
    span = f" Bytes of a client and run: {sent.min() / 1e6:.3g} to {sent.max() / 1e6:.3g} MB." if len(sent) else ""
    return _ends(material.pooled) + span


def _sites(material: Material, of: str) -> str:
    told = material.site_effects.get(of)
    if told is None:
        return ""
    rows = told[(told["metric"] == "balanced_accuracy") & told["value"].notna()]
    rows = {(r["features"], r["harmonization"], r["side"], r["label"]): r for r in rows.to_dict("records")}
    return f"Balanced accuracy of telling the cohort: {_ends(rows, lambda key: ', '.join(key))}"


def _intensities(material: Material, of: str) -> str:
    return (
        f"A curve for each of {listed(material.cohorts)}: raw intensities differ between scanners; after normalization "
        f"({material.study['preprocessing']['intensity']}) the curves should lie on one another."
    )


def _training(material: Material, of: str) -> str:
    best = {}
    for run in material.summaries:
        cell = tuple(run["cell"].values())
        if f"{cell[0]}-{cell[1]}" == of:
            best.setdefault(cell[2], set()).update(run["best_round"].values())
    rounds = [f"{name} {min(found)}" + (f" to {max(found)}" if len(found) > 1 else "") for name, found in best.items()]
    return f"Best round, chosen on validation subjects: {', '.join(rounds)}." if rounds else ""


def _weights(material: Material, of: str) -> str:
    return f"A line for each of {listed(material.cohorts)}; equal shares are {1 / max(len(material.cohorts), 1):.2f}."


def _transfer(material: Material, of: str) -> str:
    return _of_extra(material.extra.get("transfer"), "cohort", model="unseen", metric="auc")


def _personal(material: Material, of: str) -> str:
    table = material.extra.get("personalisation")
    if table is not None:
        table = table.assign(value=table["difference"])
    return _of_extra(table, "client", metric="auc")


def _membership(material: Material, of: str) -> str:
    return f"AUC of the attacks, 0.50 by chance: {_of_extra(material.extra.get('privacy'), 'client', metric='auc')}"


def _maps(material: Material, of: str) -> str:
    return "Colours are in the units of the maps; no number of them stands in a table of this page."


def _of_extra(table: pd.DataFrame | None, name: str, **chosen: str) -> str:
    if table is None:
        return ""
    for column, value in chosen.items():
        table = table[table[column] == value]
    return _ends(
        {(str(row[name]), place): row for place, row in enumerate(table.to_dict("records"))}, lambda key: key[0]
    )


KINDS = {
    "auc_forest": Kind(
        "AUC of every cell",
        "All test subjects together, with intervals. The dotted line is chance, the dashed line a classifier that knows only the cohort; "
        "hollow markers are no federation.",
        _pooled,
    ),
    "auc_table": Kind(
        "AUC of every cell and cohort",
        "A darker place is a lower value; bold figures have an interval above 0.5.",
        _every_client,
    ),
    "auc_by_head": Kind("AUC by head and cohort", "Lines are intervals over subjects.", _drawn),
    "auc_by_tuning": Kind("AUC by tuning and cohort", "For each head that was trained in several ways.", _drawn),
    "auc_by_client": Kind("AUC by cohort and aggregation", "Centralized and local are references.", _every_client),
    "auc_by_cost": Kind(
        "AUC over what a client sent and received",
        "On a logarithmic axis; cells that send nothing stand apart on the left.",
        _cost,
    ),
    "communication": Kind(
        "What a client exchanges",
        "Parameters that a method has travel, and bytes really sent: left per round, right over the whole run; logarithmic axes.",
        _cost,
    ),
    "roc_curves": Kind(
        "ROC curves", "All test subjects together, mean over seeds; bands are intervals over subjects.", _drawn
    ),
    "calibration_curves": Kind(
        "Calibration curves",
        "Share of cases over mean score, in bins of equal mass; on the dotted line scores mean what they say.",
        _calibration,
    ),
    "intensity_profiles": Kind(
        "Intensity profiles",
        "Density of voxel intensities in the brain, by cohort: as the scanner wrote them, and as the network sees them.",
        _intensities,
    ),
    "learning_curves": Kind(
        "Loss by round", "Training and validation loss of each cohort; the chosen round is marked.", _training
    ),
    "aggregation_weights": Kind(
        "Weight of each cohort in the aggregation", "By round; thin lines are seeds, thick lines their mean.", _weights
    ),
    "transfer": Kind("AUC on cohorts that the model has not seen", "", _transfer),
    "personalisation": Kind(
        "What a model of its own is worth to each cohort",
        "AUC of the own model minus that of others on the same test subjects; the smallest cohort is at the top.",
        _personal,
    ),
    "membership": Kind(
        "Attacks that tell training subjects from test subjects",
        "On logarithmic axes, since what counts is who can be told with few false alarms.",
        _membership,
    ),
    "explanation": Kind(
        "What the model looks at",
        "Means of maps over cases and over controls on the template; below, the same by models whose weights were scrambled.",
        _maps,
    ),
    "site_effects": Kind(
        "Site effects in the embeddings", "How well the cohort is told from what the network sees.", _sites
    ),
}
