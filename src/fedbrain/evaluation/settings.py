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
    known = {"/".join(cell): list(cell) for cell in (*cells, BASELINE)}
    name = "/".join(named)
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise StudyError(f"config: evaluation.comparisons.reference: the grid has no cell {name}; {hint}")
    return known[name]


def rising_ages(edges: Sequence[float]) -> list[float]:
    """The lower ends of all age bands but the first, as the config gives them. Raises StudyError where they do not rise."""
    if not edges or sorted(set(edges)) != list(edges):
        raise StudyError(
            f"config: evaluation.subgroups.age_edges: {list(edges)} must be one or more rising ages in years"
        )
    return list(edges)
