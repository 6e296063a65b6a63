"""The parts that a page of the report is made of: text, tables, folded parts. Whatever is not :class:`Html` is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

NONE = "–"
MOST = 400  # rows of one table; the rest is in the file


class Html(str):
    """Text that is HTML already."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is shown, and the number that it is sorted by (none: by its text)."""

    shown: str
    value: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Column:
    """A column: its name, its unit or a word on what it is, and whether it holds numbers."""

    name: str
    unit: str = ""
    number: bool = False


def safe(value) -> Html:
    """``value`` as HTML."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(*parts) -> Html:
    """Parts one after the other, those that are text escaped."""
    return Html("".join(safe(part) for part in parts))


def strong(*parts) -> Html:
    """Important text."""
    return Html(f"<strong>{join(*parts)}</strong>")


def p(*parts, kind: str = "") -> Html:
    """A paragraph, of a class if one is given; nothing where there is no text."""
    text = join(*parts)
    return Html(f"<p{_kind(kind)}>{text}</p>\n" if text else "")


def heading(text: str, *, level: int = 3, id: str = "") -> Html:
    """A heading within a section."""
    place = f' id="{escape(id)}"' if id else ""
    return Html(f"<h{level}{place}>{safe(text)}</h{level}>\n")


def items(parts: Sequence, *, ordered: bool = False, kind: str = "") -> Html:
    """A list; nothing where it is empty."""
    if not parts:
        return Html("")
    tag = "ol" if ordered else "ul"
    return Html(f"<{tag}{_kind(kind)}>\n" + "".join(f"<li>{safe(part)}</li>\n" for part in parts) + f"</{tag}>\n")


def link(target: str, text) -> Html:
    """A link; one to a place outside of the page opens apart."""
    apart = "" if target.startswith("#") else ' target="_blank" rel="noopener"'
    return Html(f'<a href="{escape(target)}"{apart}>{safe(text)}</a>')


def folded(summary: str, *parts) -> Html:
    """What is shown when the reader opens it."""
    return Html(f"<details>\n<summary>{safe(summary)}</summary>\n{join(*parts)}</details>\n")


def columns(*names: str) -> list[Column]:
    """Columns from short words: ``#`` before the name is a column of numbers, what follows ``|`` its unit."""
    parted = [name.removeprefix("#").partition("|") for name in names]
    return [Column(word, unit, name.startswith("#")) for name, (word, _, unit) in zip(names, parted)]


def table(
    id: str,
    caption: str,
    header: Sequence[Column],
    rows: Sequence[Sequence],
    *,
    file: str = "",
    heads: int = 1,
    total: Sequence | None = None,
) -> Html:
    """A table that can be sorted and searched; nothing where it has no rows.

    Args:
        id: of the table, unique on the page.
        caption: what it shows.
        header: its columns.
        rows: cells: text, numbers, :class:`Cell`, :class:`Html`, or None for what is missing.
        file: where all rows are, in words or as a path; named where the table is cut off after ``MOST`` rows.
        heads: the first columns that name the row.
        total: a last row that is neither sorted nor searched.
    """
    if not rows:
        return Html("")
    lines = [f'<div class="wide" tabindex="0" role="region" aria-labelledby="{id}-caption">', f'<table id="{id}">']
    lines.append(f'<caption id="{id}-caption">{safe(caption)}</caption>\n<thead>\n<tr>')
    for column in header:
        unit = f' <span class="unit">{safe(column.unit)}</span>' if column.unit else ""
        lines.append(
            f'<th scope="col"{_kind("n" if column.number else "")}><span class="name">{safe(column.name)}</span>{unit}</th>'
        )
    lines.append("</tr>\n</thead>\n<tbody>")
    lines += [_row(row, header, heads) for row in rows[:MOST]]
    lines.append("</tbody>")
    if total:
        lines.append(f"<tfoot>\n{_row(total, header, heads)}\n</tfoot>")
    lines.append("</table>\n</div>\n")
    if len(rows) > MOST:
        lines.append(p(f"The first {MOST} of {len(rows):,} rows; all are in {file}.", kind="note"))
    return Html("\n".join(lines))


def _row(row: Sequence, header: Sequence[Column], heads: int) -> str:
    cells = (_cell(value, column, place < heads) for place, (value, column) in enumerate(zip(row, header)))
    return "<tr>" + "".join(cells) + "</tr>"


def _cell(value, column: Column, head: bool) -> str:
    if not isinstance(value, Cell | Html):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        value = Cell(NONE) if value is None else Cell(f"{value:,}" if number else str(value), value if number else None)
    kinds = [name for name, here in (("n", column.number), ("strong", getattr(value, "strong", False))) if here]
    sort = "" if isinstance(value, Html) or value.value is None else f' data-value="{value.value:.8g}"'
    tag = 'th scope="row"' if head else "td"
    return f"<{tag}{_kind(' '.join(kinds))}{sort}>{safe(getattr(value, 'shown', value))}</{'th' if head else 'td'}>"


def _kind(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def beside(name: str) -> str:
    """A style sheet or script of this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def opening(title: str, look: str, *further: str) -> list[str]:
    """The beginning of a page that is one file, up to its body: ``title`` as it is, the style sheet ``look``, further elements.

    Nothing is fetched, whatever a name in the data may look like.
    """
    return [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        "'unsafe-inline'; script-src 'unsafe-inline'\">",
        f"<title>{escape(title)}</title>",
        f"<style>\n{beside('base.css')}{beside(look)}</style>",
        *further,
        "</head>",
        "<body>",
    ]
