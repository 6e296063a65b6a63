"""One page per cohort on which all of its scans can be looked at, those that stand out first.

The page is one file that needs nothing else: snapshots lie in it as data, its script and its style, too. Without its script it still
shows everything. It holds subject ids and pictures of heads, so it belongs with the data, and not into a publication.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from fedbrain.imaging import layout
from fedbrain.imaging.outliers import FEWEST, METRICS, badness, drop_words, zscores
from fedbrain.report.html import beside, opening

MOST_BYTES = 28 << 20  # of snapshots in one page, which grow by a third as text; about 1,000 scans
MANY = 25  # sound scans of a cohort; with fewer, flags by chance are frequent (docs/quality.md)
NONE = "–"


def quality_page(
    assessed: pd.DataFrame,
    *,
    cohort: str,
    title: str,
    settings: Mapping,
    exclude: Sequence[str],
    volumes: str | Path,
) -> str:
    """The page as HTML.

    Args:
        assessed: QUALITY rows with the metrics (``outliers.assess``).
        cohort: its name.
        title: of the study.
        settings: ``outlier_z``, ``limits`` and ``drop`` of the config.
        exclude: what the config excludes of this cohort already.
        volumes: the cohort's folder, with a folder per shard in it, where the snapshots lie.
    """
    z = zscores(assessed)
    metrics = list(z.columns)
    ranked = _ranked(assessed, z)
    pictures, left = {}, MOST_BYTES
    for place in ranked:
        scan = assessed.loc[place]
        path = layout.snapshot_path(Path(volumes) / str(scan["shard"]), scan["scan"])
        if scan["status"] == "ok" and path.is_file() and path.stat().st_size <= left:
            pictures[place] = path.read_bytes()
            left -= len(pictures[place])
    cards = [
        _card(number, assessed.loc[place], z.loc[place], metrics, settings, pictures.get(place))
        for number, place in enumerate(ranked)
    ]
    # Plain numbers for the strips and for sorting; in the order of the cards.
    data = {
        "cohort": cohort,
        "exclude": list(exclude),
        "metrics": [[name, METRICS[name].title] for name in metrics],
        "values": [[_plain(assessed.loc[place, name]) for name in metrics] for place in ranked],
        "z": [[_plain(z.loc[place, name]) for name in metrics] for place in ranked],
        "limits": settings["limits"],
    }
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return "\n".join(
        [
            *opening(f"{cohort}: quality of the scans", "quality_page.css"),
            _header(assessed, cohort, title, settings, len(pictures)),
            _legend(metrics, settings),
            _controls(metrics),
            '<div id="columns">',
            f'<main id="cards" aria-label="scans">\n{"".join(cards)}</main>',
            _side(metrics),
            "</div>",
            _help(),
            f'<script type="application/json" id="data">{text}</script>',
            f"<script>\n{beside('base.js')}{beside('quality_page.js')}</script>",
            "</body>",
            "</html>\n",
        ]
    )


def _ranked(assessed: pd.DataFrame, z: pd.DataFrame) -> list:
    """Flagged scans, worst first; then failed ones; then the others, worst first."""
    worst = pd.Series(
        [
            max((float(badness(v, name)) for name, v in row.items() if not math.isnan(v)), default=-math.inf)
            for _, row in z.iterrows()
        ],
        assessed.index,
        dtype=float,
    )
    group = (assessed["status"] != "ok").astype(int).where(assessed["flagged"] == 0, -1) + (
        (assessed["flagged"] == 0) & (assessed["status"] == "ok")
    ) * 2
    return sorted(assessed.index, key=lambda place: (group[place], -worst[place], assessed.loc[place, "scan"]))


def _plain(value) -> float | None:
    return None if pd.isna(value) else round(float(value), 6)


def _shown(value) -> str:
    if pd.isna(value):
        return NONE
    if value == 0:
        return "0"
    return f"{value:.4g}" if abs(value) >= 0.01 else f"{abs(value):.4f}" if round(value, 4) == 0 else f"{value:.4f}"


def _header(assessed: pd.DataFrame, cohort: str, title: str, settings: Mapping, pictures: int) -> str:
    sound = assessed[assessed["status"] == "ok"]
    flagged, dropped = int(assessed["flagged"].sum()), int((sound["kept"] == 0).sum())
    counts = f"{len(assessed)} scans, {len(assessed) - len(sound)} failed, {flagged} flagged, {dropped} dropped."
    words = [
        counts,
        f"Flagged is what lies beyond a limit or at a robust z over {settings['outlier_z']:g} in a metric's bad direction, within "
        "this cohort, and what has no value of a metric that has a limit or that most scans have.",
        drop_words(settings["drop"]),
    ]
    if len(sound) < FEWEST:
        words.append(f"With fewer than {FEWEST} sound scans nothing can be said of outliers; limits alone count.")
    elif len(sound) < MANY:
        words.append(f"Of fewer than {MANY} sound scans more than one in twenty may be flagged by chance.")
    if pictures < len(sound):
        words.append(
            f"{len(sound) - pictures} scans have no picture here: a page holds {MOST_BYTES >> 20} MB of them, worst scans first. All "
            "lie beside the volumes (desc-quality_T1w.webp)."
        )
    return (
        f"<header><h1>Quality of the scans: {escape(cohort)}</h1>\n<p>{escape(title)}. {escape(' '.join(words))}</p>\n"
        "<p>In each picture the upper row is the scan as it came with the outline of its <b class=mask>brain mask</b>, the lower row "
        "the bias-corrected brain on the MNI grid with the outline of the <b class=template>template</b>'s brain. The left of "
        "the head is at the left; hatched is what lies outside the scan. "
        "<b>This page shows subject ids and pictures of heads: keep it with the data.</b></p></header>"
    )


def _controls(metrics: Sequence[str]) -> str:
    options = "".join(f'<option value="{i}">{escape(METRICS[name].title)}</option>' for i, name in enumerate(metrics))
    return f"""<nav id="controls" aria-label="search, filter and order">
<label>Search <input id="search" type="search" placeholder="scan or reason" autocomplete="off"></label>
<label>Show <select id="show"><option value="all">all scans</option><option value="flagged">flagged</option>
<option value="failed">failed</option><option value="dropped">dropped</option><option value="marked">marked</option>
<optgroup label="flagged by">{options}</optgroup></select></label>
<label>Order <select id="order"><option value="worst">worst first</option><option value="name">name</option>
<optgroup label="by metric, worst first">{options}</optgroup></select></label>
<span id="count" role="status" aria-live="polite"></span>
<button id="ask" type="button">Keys (?)</button>
</nav>"""


def _card(number: int, scan: pd.Series, z: pd.Series, metrics, settings: Mapping, picture: bytes | None) -> str:
    name = escape(scan["scan"])
    state = "failed" if scan["status"] != "ok" else "flagged" if scan["flagged"] else "plain"
    badges = f'<span class="badge {state}">{state}</span>' if state != "plain" else ""
    if state != "failed" and not scan["kept"]:
        badges += '<span class="badge dropped">dropped</span>'
    lines = [
        f'<article id="s{number}" class="{state}" tabindex="-1" data-scan="{name}" data-state="{state}" '
        f'data-dropped="{int(state != "failed" and not scan["kept"])}" aria-label="{name}, {state}">',
        f'<h2><span class="name">{name}</span> {badges}<button type="button" class="mark" aria-pressed="false">Exclude</button></h2>',
    ]
    if not pd.isna(scan["reason"]):
        items = scan["reason"].split("; ") if state == "flagged" else [scan["reason"]]
        lines.append('<ul class="reason">' + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>")
    if picture is not None:
        alt = f"{name}: slices of the head with its brain mask, and of the brain on the template"
        data = base64.b64encode(picture).decode()
        lines.append(
            f'<div class="picture"><img alt="{alt}" width="952" height="272" loading="lazy" decoding="async" '
            f'src="data:image/webp;base64,{data}"></div>'
        )
    elif state != "failed":
        lines.append('<p class="absent">No picture in this page.</p>')
    if state != "failed":
        cells = []
        for metric in metrics:
            value, own = scan[metric], z[metric]
            bad = not math.isnan(own) and float(badness(own, metric)) > settings["outlier_z"]
            limit = settings["limits"].get(metric, {})
            beyond = not pd.isna(value) and (value < limit.get("min", -math.inf) or value > limit.get("max", math.inf))
            score = NONE if math.isnan(own) else f"{own:+.1f}"
            cells.append(
                f"<div{' class=bad' if bad or beyond else ''}><dt>{escape(METRICS[metric].title)}</dt>"
                f"<dd>{_shown(value)} <span>z {score}</span></dd></div>"
            )
        lines.append(f"<dl>{''.join(cells)}</dl>")
    return "\n".join(lines) + "\n</article>\n"


def _side(metrics: Sequence[str]) -> str:
    strips = "".join(
        f'<li><button type="button" data-metric="{i}" title="order the scans by this metric">'
        f'<span class="name">{escape(METRICS[name].title)}</span><span class="now"></span>'
        f'<svg viewBox="0 0 300 26" preserveAspectRatio="none" role="img" aria-label="{escape(METRICS[name].title)} of all scans">'
        "</svg></button></li>"
        for i, name in enumerate(metrics)
    )
    return f"""<aside aria-label="marked scans and distributions">
<section id="marked"><h2>Marked for exclusion: <span id="marks">0</span></h2>
<p>For config.yaml, with what is excluded already:</p>
<pre id="snippet" tabindex="0"></pre>
<button id="copy" type="button">Copy</button> <button id="clear" type="button">Unmark all</button></section>
<section id="strips"><h2>Distributions</h2><p id="whose"></p><ul>{strips}</ul></section>
</aside>"""


def _legend(metrics: Sequence[str], settings: Mapping) -> str:
    bad = {"low": "low", "high": "high", "both": "either way"}
    rows = []
    for name in metrics:
        metric, limit = METRICS[name], settings["limits"].get(name, {})
        limits = ", ".join(f"{key} {value:g}" for key, value in limit.items()) or NONE
        cells = (metric.title, name, metric.formula, bad[metric.bad], limits, metric.source or NONE)
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return (
        "<details id=legend><summary>What the metrics mean</summary>\n<div class=wide><table><thead><tr><th>metric<th>column<th>formula"
        f"<th>bad<th>limit<th>source</tr></thead><tbody>\n{''.join(rows)}</tbody></table></div>\n"
        "<p>Robust z: (x − median) / (1.4826 MAD) over the sound scans of this cohort; where more than half of the values are "
        "equal, (x − median) / (1.2533 mean absolute deviation). Left and right cannot be checked: the template is symmetric.</p></details>"
    )


def _help() -> str:
    keys = {
        "j or ↓": "next scan",
        "k or ↑": "previous scan",
        "f": "mark the scan for exclusion, or unmark it",
        "/": "search",
        "Esc": "leave the search, close this",
        "?": "show this",
    }
    rows = "".join(f"<div><dt><kbd>{escape(key)}</kbd></dt><dd>{escape(what)}</dd></div>" for key, what in keys.items())
    return f'<dialog id="help" aria-label="keys"><h2>Keys</h2><dl>{rows}</dl><form method="dialog"><button>Close</button></form></dialog>'
