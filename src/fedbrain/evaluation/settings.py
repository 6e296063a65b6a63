"""Settings of the evaluation that the config's schema cannot check, checked before anything runs."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from fedbrain.errors import StudyError

BASELINE = ("site_only", "none", "none")  # as in fedbrain.evaluation.baseline, which is not imported at the start


def reference_cell(named: Sequence[str] | None, cells: Iterable[Sequence[str]]) -> list[str] | None:
    """The reference of the comparisons as the config names it, or None where every pair of cells is compared.

    named: head, tuning and aggregation, or none. cells: those of the grid; the site-only baseline may be named, too.
    Raises StudyError with the nearest cells where the grid has no such cell.
    """
    if named is None:
        return None
    return _of_grid(named, (*cells, BASELINE), "evaluation.comparisons.reference")


def audited_cells(named: Sequence[Sequence[str]], cells: Iterable[Sequence[str]]) -> list[list[str]]:
    """The cells of the privacy audit as the config names them, each once.

    Raises StudyError with the nearest cells where the grid has no such cell.
    """
    cells = list(cells)
    chosen = [_of_grid(cell, cells, "evaluation.privacy.cells") for cell in named]
    return [cell for place, cell in enumerate(chosen) if cell not in chosen[:place]]


def rising_ages(edges: Sequence[float]) -> list[float]:
    """The lower ends of all age bands but the first, as the config gives them. Raises StudyError where they do not rise."""
    if not edges or sorted(set(edges)) != list(edges):
        raise StudyError(
            f"config: evaluation.subgroups.age_edges: {list(edges)} must be one or more rising ages in years"
        )
    return list(edges)


def _of_grid(named: Sequence[str], cells: Iterable[Sequence[str]], place: str) -> list[str]:
    known = {"/".join(cell): list(cell) for cell in cells}
    name = "/".join(named)
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise StudyError(f"config: {place}: the grid has no cell {name}; {hint}")
    return known[name]
