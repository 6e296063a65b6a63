"""The study page: one file that tells a study from what was asked to what it does not say.

It needs nothing else: style, script and figures lie in it, and without its script it still shows everything. It holds
counts and results only, never a subject's id. The same page is the landing page of Snakemake's report (:func:`landing_page`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from fedbrain.report.html import Html, beside, opening, p
from fedbrain.report.material import Material
from fedbrain.report.sections import (
    alarms,
    calibration,
    checklist,
    cohorts,
    comparisons,
    cost,
    extra,
    methods,
    model_card,
    quality,
    results,
    site_effects,
    subgroups,
    summary,
    training,
    warnings,
)


@dataclass(frozen=True)
class Section:
    """A part of the page. An empty body is no section."""

    id: str
    title: str
    body: Callable[[Material], Html]


# In the order of the page. A new section is a function of the material and a line here.
SECTIONS = (
    Section("summary", "In short", summary.summary),
    Section("cohorts", "Cohorts", cohorts.cohorts),
    Section("quality", "Preprocessing and quality", quality.quality),
    Section("results", "Results", results.results),
    Section("comparisons", "Comparisons", comparisons.comparisons),
    Section("transfer", "Unseen cohorts", extra.transfer),
    Section("personalisation", "Personal models", extra.personalisation),
    Section("calibration", "Calibration and thresholds", calibration.calibration),
    Section("subgroups", "Subgroups", subgroups.subgroups),
    Section("site-effects", "Site effects", site_effects.site_effects),
    Section("explanation", "What the models look at", extra.explanation),
    Section("training", "Training", training.training),
    Section("cost", "Cost", cost.cost),
    Section("privacy", "Privacy", extra.privacy),
    Section("warnings", "Failures and warnings", warnings.warnings),
    Section("methods", "Methods", methods.methods),
    Section("model-card", "Model card", model_card.model_card),
    Section("settings", "Settings and versions", methods.settings),
)
CHECKLIST = ("checklist", "TRIPOD+AI checklist")


def study_page(material: Material) -> str:
    """The page as HTML."""
    bodies = [(section.id, section.title, section.body(material)) for section in SECTIONS]
    bodies = [part for part in bodies if part[2]]
    titles = {id: title for id, title, _ in bodies}
    place = next((place for place, part in enumerate(bodies) if part[0] == "settings"), len(bodies))
    bodies.insert(place, (*CHECKLIST, checklist.checklist(material, titles)))
    title = escape(material.study["title"])
    return "\n".join(
        [
            *opening(
                material.study["title"],
                "study_page.css",
                # Before anything is drawn, so that a page that was dark does not flash.
                f"<script>\n{beside('theme.js')}</script>",
            ),
            '<a class="skip" href="#main">To the content</a>',
            f'<header>\n<p class="kind">Study report</p>\n<h1>{title}</h1>\n{alarms.alarms(material)}</header>',
            _controls(),
            '<div id="columns">',
            _contents(bodies),
            '<main id="main" tabindex="-1">',
            *(_section(*part) for part in bodies),
            "</main>",
            "</div>",
            f"<footer>\n{_footer(material)}</footer>",
            f"<script>\n{beside('base.js')}{beside('study_page.js')}</script>",
            "</body>",
            "</html>\n",
        ]
    )


def landing_page(page: str) -> str:
    """The page as the reStructuredText that Snakemake's report takes as its landing page.

    The report puts what it is given into a page of its own, by which no script runs and every style is another. So
    the page stands in a frame, unchanged but for links to other results, which lie a folder deeper from there. The size of the
    frame is in profiles/default/report.css.
    """
    framed = page.replace('href="../', 'href="')
    # As an attribute nothing in it is HTML to the report. The report also renders the text as a Jinja template, and nothing
    # in it is meant as one.
    for character, code in (("&", "&amp;"), ('"', "&quot;"), ("<", "&lt;"), (">", "&gt;"), ("{", "&#123;")):
        framed = framed.replace(character, code)
    html = f'<iframe id="study-page" title="Study report" srcdoc="{framed}"></iframe>'
    return ".. raw:: html\n\n" + "\n".join(f"    {line}" for line in html.splitlines()) + "\n"


def _section(id: str, title: str, body: Html) -> str:
    return (
        f'<section id="{id}" aria-labelledby="{id}-title">\n<h2 id="{id}-title">{escape(title)}</h2>\n{body}</section>'
    )


def _contents(bodies: list[tuple[str, str, Html]]) -> str:
    lines = "\n".join(f'<li><a href="#{id}">{escape(title)}</a></li>' for id, title, _ in bodies)
    return f'<nav id="contents" aria-label="contents">\n<ol>\n{lines}\n</ol>\n</nav>'


def _controls() -> str:
    """What needs the script, and is shown by it."""
    return """<div id="controls" role="search" hidden>
<label>Search all tables <input id="search" type="search" placeholder="a cohort, a head, a reason" autocomplete="off"></label>
<span id="count" role="status" aria-live="polite"></span>
<span class="buttons">
<button id="unfold" type="button" aria-pressed="false">Open all</button>
<button id="theme" type="button">Dark</button>
<button id="print" type="button">Print</button>
<button id="ask" type="button" aria-label="keys">?</button>
</span>
</div>
<dialog id="help" aria-labelledby="help-title">
<h2 id="help-title">Keys</h2>
<dl>
<div><dt><kbd>/</kbd></dt><dd>search</dd></div>
<div><dt><kbd>Esc</kbd></dt><dd>empty the search, close this</dd></div>
<div><dt><kbd>d</kbd></dt><dd>dark or light</dd></div>
<div><dt><kbd>o</kbd></dt><dd>open or close all folded parts</dd></div>
<div><dt><kbd>?</kbd></dt><dd>show this</dd></div>
</dl>
<p>A click on a column's name sorts by it, a second one the other way round. Ctrl or Shift with the arrow keys scrolls a wide table that has the focus.</p>
<form method="dialog"><button>Close</button></form>
</dialog>"""


def _footer(material: Material) -> Html:
    version = material.versions.get("fedbrain")
    made = f"Made by fedbrain {version}." if version else "Made by fedbrain."
    return p(f"{made} Research software, no medical device. Tables: results/evaluation, figures: results/figures.")
