"""Numbers as the report writes them, beside the value that a table is sorted by."""

import math
from collections.abc import Mapping

import pandas as pd

from fedbrain.report.html import NONE, Cell

MINUS = "−"


def fixed(value, digits: int = 2, *, sign: bool = False, strong: bool = False) -> Cell:
    """A number with so many digits after the point; a dash where it is missing."""
    if value is None or pd.isna(value):
        return Cell(NONE)
    return Cell(_plain(value, digits, sign), float(value), strong)


def words(row: Mapping | None, digits: int = 2, *, of: str = "value", sign: bool = False) -> str:
    """``0.81 (0.70 to 0.90)``: a value with its interval, or what there is of it.

    A limit that is missing, since it is not finite, is a dash beside the other.
    """
    if row is None or pd.isna(row[of]):
        return NONE
    limits = [NONE if pd.isna(row[name]) else _plain(row[name], digits, sign) for name in ("low", "high")]
    return _plain(row[of], digits, sign) + ("" if limits == [NONE, NONE] else f" ({limits[0]} to {limits[1]})")


def interval(row: Mapping | None, digits: int = 2, *, of: str = "value", sign: bool = False, strong=False) -> Cell:
    """The same as a cell of a table."""
    value = None if row is None or pd.isna(row[of]) else float(row[of])
    return Cell(words(row, digits, of=of, sign=sign), value, strong)


def p_value(value, mark: str = "") -> Cell:
    """A p-value: below 0.001 no digits, below 0.1 three, else two."""
    if pd.isna(value):
        return Cell(NONE)
    text = "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
    return Cell(text + mark, float(value))


def share(part: float, digits: int = 0) -> Cell:
    """A share in per cent."""
    return Cell(NONE) if pd.isna(part) else Cell(f"{100 * part:.{digits}f} %", float(part))


def percent(part) -> Cell:
    """A share in per cent with two to three digits, however small."""
    return Cell(NONE) if pd.isna(part) else Cell(f"{small(100 * part).shown} %", float(part))


def plain(value: float) -> str:
    """A setting, without an exponent: 0.00005."""
    return f"{value:.10f}".rstrip("0").rstrip(".")


def size(count) -> Cell:
    """Bytes with three digits and the power of 1,000 that fits."""
    if pd.isna(count):
        return Cell(NONE)
    power = min(int(math.log(count, 1000)), 3) if count >= 1 else 0
    return Cell(f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}" if count else "0", float(count))


def small(value) -> Cell:
    """Two to three digits, without an exponent."""
    if pd.isna(value):
        return Cell(NONE)
    text = (
        f"{value:,.1f}"
        if value >= 10
        else f"{float(f'{value:.2g}'):g}"
        if value >= 1e-4
        else "< 0.0001"
        if value > 0
        else "0"
    )
    return Cell(text, float(value))


def counted(number: int, one: str, many: str = "") -> str:
    """``1 scan``, ``2 scans``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(names, last: str = "and") -> str:
    """``a, b and c``."""
    names = list(map(str, names))
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


def _plain(value: float, digits: int, sign: bool) -> str:
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    text = text.replace("-", MINUS)
    # A zero has no minus.
    return text if any(c in "123456789" for c in text) else text.lstrip(f"{MINUS}+")
