"""What must be read before any number: weights that are random, cohorts that are simulated, test data that was seen before."""

from fedbrain.models.cards import CARDS, overlap
from fedbrain.report.html import Html, p, strong
from fedbrain.report.material import Material
from fedbrain.report.numbers import listed


def alarms(material: Material) -> Html:
    """All of them, each a box; nothing where there is none."""
    return Html("".join(p(strong(title), " ", text, kind="alarm") for title, text in told(material)))


def told(material: Material) -> list[tuple[str, str]]:
    """Each in a few loud words, and what they mean."""
    found = []
    if material.untrained:
        found.append(
            (
                "Untrained encoder: its weights are random.",
                "Nothing on this page says how a pretrained model performs.",
            )
        )
    if material.phantoms:
        every = set(material.phantoms) == set(material.cohorts)
        which = "All cohorts are simulated" if every else f"Simulated: {listed(material.phantoms)}"
        found.append(
            (
                f"{which}: computed heads (phantoms), not patients.",
                "They show that the study runs; they are no evidence about dementia.",
            )
        )
    if seen := seen_before(material):
        title = CARDS[material.study["encoder"]["name"]].title
        found.append(
            (
                f"Leakage: the encoder was pretrained on data that this study tests on ({listed(seen)}).",
                f"{title} may have seen these test subjects, so results on these cohorts may be too good. docs/encoder.md "
                "says what is known of its pretraining.",
            )
        )
    return found


def seen_before(material: Material) -> list[str]:
    """Test cohorts that a pretrained encoder has seen, as far as its card knows."""
    if material.study["encoder"]["weights"] == "random":
        return []
    card = CARDS[material.study["encoder"]["name"]]
    found = {cohort: overlap(card, dataset) for cohort, dataset in material.datasets.items()}
    return [f"{cohort}: {name}" for cohort, name in found.items() if name]
