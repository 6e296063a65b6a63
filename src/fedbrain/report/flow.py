"""How many scans and subjects went in, who was left out and why, and where the rest went (as STARD and TRIPOD ask), drawn as SVG."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd

from fedbrain.cohorts.splits import KNOWN
from fedbrain.report.html import Html, items, join
from fedbrain.report.material import Material
from fedbrain.report.numbers import counted

SIDES = ("train", "validation", "test")
SIDE_NAMES = {"train": "Training", "validation": "Validation", "test": "Test"}
REASONS = 6  # of a box; further ones are counted together
COHORTS = 8  # of a box; a study with more has them in the table alone
LETTER = 7.0  # px, mean width of a character at the size of the text
WIDTH, LINE, PAD = 900, 19, 12


@dataclass(frozen=True)
class Flow:
    """Counts of a study; reasons with their number, most frequent first."""

    found: int  # scans
    found_subjects: int
    excluded: list[tuple[str, int]]
    included: int
    included_subjects: int
    failed: list[tuple[str, int]]
    dropped: list[tuple[str, int]]
    used: int
    used_subjects: int
    sides: dict[str, dict[str, tuple[int, int]]]  # side -> cohort -> subjects of label 0 and 1
    cohorts: int


def flow(material: Material) -> Flow:
    """The counts, from the tables."""
    subjects = set()
    for tables in (material.scans, material.excluded):
        for cohort, table in tables.items():
            known = table["subject"].dropna() if "subject" in table else []
            subjects |= {(cohort, subject) for subject in known}
    sides = {side: {} for side in SIDES}
    of_places = material.splits.groupby(["split", "cohort"])
    for side, cohort in ((side, cohort) for side in SIDES for cohort in material.cohorts):
        if (side, cohort) in of_places.groups:
            labels = of_places.get_group((side, cohort))["label"]
            sides[side][cohort] = (int((labels == 0).sum()), int((labels == 1).sum()))
    used = sum(map(len, material.used.values()))
    unsound = sum(int(((t["status"] == "ok") & (t["kept"] == 0)).sum()) for t in material.quality.values())
    known = sum(int((t["kept"] == 1).sum()) for t in material.quality.values()) - used
    return Flow(
        found=sum(map(len, material.scans.values())) + sum(map(len, material.excluded.values())),
        found_subjects=len(subjects),
        excluded=_counted(table["reason"] for table in material.excluded.values()),
        included=sum(map(len, material.scans.values())),
        included_subjects=sum(table["subject"].nunique() for table in material.scans.values()),
        failed=_counted(failures(table) for table in material.volumes.values()),
        dropped=[(reason, number) for reason, number in (("for their quality", unsound), (KNOWN, known)) if number],
        used=used,
        used_subjects=len(material.splits),
        sides=sides,
        cohorts=len(material.cohorts),
    )


def failures(volumes: pd.DataFrame) -> pd.Series:
    """Why scans failed. What follows the kind of an unforeseen error may hold a path, and a path a subject's id."""
    failed = volumes[volumes["status"] != "ok"]["reason"]
    return failed.astype("string").str.replace(r"^(unforeseen: \w+):.*", r"\1; see the table of the shard", regex=True)


def _counted(columns) -> list[tuple[str, int]]:
    every = [reason for column in columns for reason in column.fillna("no reason given")]
    return [(str(reason), int(count)) for reason, count in pd.Series(every, dtype="object").value_counts().items()]


def outline(told: Flow, classes: Sequence[str]) -> Html:
    """The same in words: what the diagram says to who does not see it."""
    lines = [f"{_scans(told.found)} of {_subjects(told.found_subjects)} in {counted(told.cohorts, 'cohort')} found."]
    lines.append(f"Left out at intake: {_scans(sum(n for _, n in told.excluded))}.")
    lines += [f"Left out: {reason}: {count}." for reason, count in told.excluded]
    lines.append(f"Taken in: {_scans(told.included)} of {_subjects(told.included_subjects)}.")
    lines.append(f"Failed in preprocessing: {_scans(sum(n for _, n in told.failed))}.")
    lines += [f"Failed: {reason}: {count}." for reason, count in told.failed]
    lines.append(f"Dropped: {_scans(sum(n for _, n in told.dropped))}.")
    lines += [f"Dropped: {reason}: {count}." for reason, count in told.dropped]
    lines.append(f"Used: {_scans(told.used)} of {_subjects(told.used_subjects)}.")
    for side, cohorts in told.sides.items():
        lines.append(f"{SIDE_NAMES[side]}: {_classes(_total(cohorts), classes)}.")
        lines += [f"{SIDE_NAMES[side]}, {cohort}: {_classes(pair, classes)}." for cohort, pair in cohorts.items()]
    return items(lines)


def diagram(told: Flow, classes: Sequence[str]) -> Html:
    """The drawing. Boxes down the left are what goes on, those at the right what is lost on the way."""
    parts, y = [], 1
    main = (20, 400)  # left edge, width
    side = (500, WIDTH - 501)

    def step(title: str, lines: list[str], lost_title: str, lost: list[str]) -> None:
        nonlocal y
        box, height = _box(*main, y, title, lines)
        parts.append(box)
        middle = main[0] + main[1] / 2
        top, aside_height = y + height + 14, _height(lost_title, lost, side[1])
        parts.append(_box(*side, top, lost_title, lost, kind="lost")[0])
        at = top + aside_height / 2
        y = max(top + aside_height + 14, y + height + 44)
        parts.append(_arrow(middle, top - 14, middle, y - 1))
        parts.append(_arrow(middle, at, side[0] - 1, at))

    step(
        f"Found: {_scans(told.found)}",
        [f"{_subjects(told.found_subjects)}, {counted(told.cohorts, 'cohort')}"],
        f"Left out at intake: {_scans(sum(n for _, n in told.excluded))}",
        _reasons(told.excluded),
    )
    step(
        f"Taken in: {_scans(told.included)}",
        [_subjects(told.included_subjects)],
        f"Failed in preprocessing: {_scans(sum(n for _, n in told.failed))}",
        _reasons(told.failed),
    )
    sound = told.included - sum(n for _, n in told.failed)
    dropped = f"Dropped: {_scans(sum(n for _, n in told.dropped))}"
    step(f"Preprocessed: {_scans(sound)}", [], dropped, _reasons(told.dropped))
    box, height = _box(*main, y, f"Used: {_scans(told.used)}", [_subjects(told.used_subjects)])
    parts.append(box)
    middle, bar = main[0] + main[1] / 2, y + height + 18
    parts.append(f'<path class="line" d="M{middle} {y + height}V{bar}"/>')
    leaf = (WIDTH - 2 - 40) / 3
    centres = [1 + leaf / 2 + k * (leaf + 20) for k in range(3)]
    parts.append(f'<path class="line" d="M{centres[0]:.0f} {bar}H{centres[2]:.0f}"/>')
    y, bottom = bar + 22, 0
    for side_name, centre in zip(SIDES, centres):
        parts.append(_arrow(centre, bar, centre, y - 1))
        cohorts = told.sides[side_name]
        negatives, positives = _total(cohorts)
        lines = [f"{negatives:,} {classes[0]}, {positives:,} {classes[1]}"]
        if len(cohorts) <= COHORTS:
            lines += [f"{cohort}: {pair[0]:,} + {pair[1]:,}" for cohort, pair in cohorts.items()]
        title = f"{SIDE_NAMES[side_name]}: {_subjects(negatives + positives)}"
        box, height = _box(centre - leaf / 2, leaf, y, title, lines)
        parts.append(box)
        bottom = max(bottom, y + height + 1)
    used = f"{_scans(told.used)} of {_subjects(told.used_subjects)} used"
    return join(
        Html(
            f'<svg class="flow" viewBox="0 0 {WIDTH} {bottom:.0f}" role="img" aria-labelledby="flow-title flow-text">\n'
            f'<title id="flow-title">Flow of scans and subjects</title>\n<desc id="flow-text">{_scans(told.found)} found, {used}; '
            f"the list below the diagram has every number.</desc>\n"
            '<defs><marker id="flow-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            '<path class="head" d="M0 0L8 4L0 8z"/></marker></defs>\n'
        ),
        Html("\n".join(parts)),
        Html("\n</svg>\n"),
    )


def _reasons(counts: list[tuple[str, int]]) -> list[str]:
    lines = [f"{count:,}: {reason}" for reason, count in counts[:REASONS]]
    if rest := counts[REASONS:]:
        lines.append(f"{sum(n for _, n in rest):,}: {counted(len(rest), 'further reason')}, listed below")
    return lines


def _wrapped(title: str, lines: list[str], width: float) -> list[tuple[str, bool]]:
    room = int((width - 2 * PAD) / LETTER)
    bold = [(line, True) for line in textwrap.wrap(title, int(room * 0.93))]
    return bold + [(line, False) for text in lines for line in textwrap.wrap(text, room, subsequent_indent="  ")]


def _height(title: str, lines: list[str], width: float) -> float:
    return 2 * PAD - 4 + LINE * len(_wrapped(title, lines, width))


def _box(x: float, width: float, y: float, title: str, lines: list[str], kind: str = "kept") -> tuple[str, float]:
    wrapped, height = _wrapped(title, lines, width), _height(title, lines, width)
    kind_of = {True: ' class="bold"', False: ""}
    texts = "".join(
        f'\n<text x="{x + PAD:.0f}" y="{y + PAD + 11 + LINE * place:.0f}"{kind_of[bold]}>{escape(line)}</text>'
        for place, (line, bold) in enumerate(wrapped)
    )
    box = f'<rect class="{kind}" x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="5"/>'
    return f"<g>{box}{texts}</g>", height


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path class="line" marker-end="url(#flow-head)" d="M{x:.0f} {y:.0f}L{to_x:.0f} {to_y:.0f}"/>'


def _total(cohorts: dict[str, tuple[int, int]]) -> tuple[int, int]:
    return sum(a for a, _ in cohorts.values()), sum(b for _, b in cohorts.values())


def _classes(pair: tuple[int, int], classes: Sequence[str]) -> str:
    return f"{_subjects(sum(pair))} ({pair[0]:,} {classes[0]}, {pair[1]:,} {classes[1]})"


def _scans(number: int) -> str:
    return counted(number, "scan")


def _subjects(number: int) -> str:
    return counted(number, "subject")
