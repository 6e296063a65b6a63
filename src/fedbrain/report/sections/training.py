"""How the training went: losses, chosen rounds, weights of the clients."""

from fedbrain.report.figures import figures, further
from fedbrain.report.html import Cell, Html, columns, folded, join, p, table
from fedbrain.report.material import Material


def training(material: Material) -> Html:
    """Learning curves, contribution weights, best rounds."""
    curves, weights, rest = (
        figures(material, "learning_curves"),
        figures(material, "aggregation_weights"),
        further(material),
    )
    return join(
        p(
            f"{sum(len(cell[3]) for cell in material.cells)} runs. The round of each was chosen by the validation subjects; where it is the "
            "last one, more rounds might have helped, and where it is the first, fewer."
        ),
        _round_table(material),
        folded("Loss by round", curves) if curves else "",
        folded("Weight of each cohort in the aggregation", weights) if weights else "",
        folded("Further figures", rest) if rest else "",
    )


def _round_table(material: Material) -> Html:
    found: dict[tuple, list[int]] = {}
    for run in material.summaries:
        found.setdefault(tuple(run["cell"].values()), []).extend(run["best_round"].values())
    rows = []
    for head, tuning, aggregation, seeds in material.cells:
        numbers = sorted(found.get((head, tuning, aggregation), ()))
        span = None
        if numbers:
            text = f"{numbers[0]} to {numbers[-1]}" if numbers[-1] > numbers[0] else str(numbers[0])
            span = Cell(text, sum(numbers) / len(numbers))
        rows.append([head, tuning, aggregation, len(seeds), span, _rounds(material, head, tuning)])
    header = columns(
        "head", "tuning", "aggregation", "#runs|seeds", "#best round|over seeds and models", "#rounds|at most"
    )
    return folded("Rounds of every cell", table("rounds-table", "The chosen rounds", header, rows, heads=3))


def _rounds(material: Material, head: str, tuning: str) -> int | None:
    options = material.study["training"]
    found = options.get("rounds")
    for section, name in (("heads", head), ("tunings", tuning)):
        found = options.get(section, {}).get(name, {}).get("rounds", found)
    return found
