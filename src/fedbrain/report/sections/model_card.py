"""The model card of the study: what the best federated model is, what it was made of, and what it is not for.

Headings as in Mitchell et al., Model cards for model reporting, FAT* 2019.
"""

from fedbrain.models.cards import CARDS
from fedbrain.report.html import Html, folded, items, join, p
from fedbrain.report.material import POOLED, Material, shown
from fedbrain.report.numbers import counted, listed, words
from fedbrain.report.sections import alarms, subgroups

AUTHORS = "[TO BE WRITTEN BY THE AUTHORS]"


def model_card(material: Material) -> Html:
    """Each heading with what the run knows, and what its authors must add."""
    card = CARDS[material.study["encoder"]["name"]]
    negative, positive = material.classes
    best = material.best
    parts = {
        "Model details": [
            f"Best federated cell: {shown(best)} (head / tuning / aggregation)."
            if best
            else "No federated cell has an AUC.",
            f"Encoder: {card.title}; weights in that cell: {_weights(material)}.",
            f"Reference: {card.reference}.",
            f"Licence of the encoder's weights: {card.licence}. Software: Apache-2.0. Licence of the trained model: {AUTHORS}.",
            f"Input: a T1-weighted head MRI, brought to {' x '.join(map(str, card.input_shape))} voxels of {card.spacing:g} mm; output: a score "
            f"from 0 ({negative}) to 1 ({positive}).",
            f"Contact: {AUTHORS}.",
        ],
        "Intended use": [
            f"Research on federated learning: to compare ways of training that tell {positive} from {negative}.",
            "Out of scope: diagnosis, screening or any decision about a person; scans that differ from those of the cohorts (contrast agent, other "
            "sequences, children, tumours, operations).",
        ],
        "Factors": [
            f"Cohorts: {listed(material.cohorts)}. Groups that were looked at: {subgroups.groups_words(material) or 'none'}.",
            "Groups that the tables do not know (such as ethnicity, education, stage of disease) were not looked at.",
        ],
        "Metrics": [
            f"Area under the ROC curve with {material.level} intervals; balanced accuracy, average precision, Brier score, calibration, sensitivity and "
            "specificity at 0.5 and at a threshold chosen on validation subjects.",
        ],
        "Evaluation data": _sides(material, ("test",)),
        "Training data": [*_sides(material, ("train", "validation")), *_pretraining(material)],
        "Quantitative analyses": _numbers(material),
        "Ethical considerations": [
            "No person's data were used: all cohorts are simulated."
            if set(material.phantoms) == set(material.cohorts)
            else "The data are of persons, some of whom may not be able to consent. Consent, approval and rules of the data's owners: "
            f"{AUTHORS}.",
            "Scans stay with their owners in such a federation; trained parameters may still betray training data (Privacy).",
        ],
        "Caveats and recommendations": [
            *(f"{title} {text}" for title, text in alarms.told(material)),
            "Test on people of a further hospital before any claim beyond these cohorts.",
            "Scores are not calibrated for a place with another share of cases.",
        ],
    }
    encoder_note = folded(
        "What is known of the encoder's pretraining", p(card.pretraining_note), items([", ".join(card.pretraining)])
    )
    shown_parts = "".join(
        f"<div>\n<dt>{heading}</dt>\n<dd>{items(lines)}</dd>\n</div>\n" for heading, lines in parts.items()
    )
    return join(Html(f'<dl class="card">\n{shown_parts}</dl>\n'), encoder_note)


def _weights(material: Material) -> str:
    """Of the best cell; of all, where there is none."""
    of_best = [run for run in material.summaries if tuple(run["cell"].values()) == material.best]
    return listed(sorted({str(run["weights"]) for run in of_best or material.summaries}))


def _sides(material: Material, sides: tuple[str, ...]) -> list[str]:
    negative, positive = material.classes
    told = []
    for side in sides:
        rows = material.splits[material.splits["split"] == side]
        cases = int((rows["label"] == 1).sum())
        told.append(
            f"{side.capitalize()}: {counted(len(rows), 'subject')} ({len(rows) - cases} {negative}, {cases} {positive}) of "
            f"{counted(rows['cohort'].nunique(), 'cohort')}."
        )
    if material.phantoms:
        told.append(f"Simulated: {listed(material.phantoms)}.")
    return told


def _pretraining(material: Material) -> list[str]:
    if material.study["encoder"]["weights"] == "random":
        return ["The encoder was not pretrained: its weights are random."]
    seen = alarms.seen_before(material)
    if seen:
        return [f"The encoder was pretrained on data of {listed(seen)}, among others (below)."]
    return [
        "No cohort of this study is among the data sets that the encoder is known to have been pretrained on (below); that is no proof."
    ]


def _numbers(material: Material) -> list[str]:
    best = material.best
    if best is None:
        return ["None."]
    told = [f"All test subjects: AUC {words(material.federated[best])}."]
    for name, title in (("balanced_accuracy", "balanced accuracy"), ("brier", "Brier score")):
        row = material.metric(name).get((*best, POOLED))
        if row is not None:
            told.append(f"All test subjects: {title} {words(row)}.")
    for cohort in material.cohorts:
        row = material.aucs.get((*best, cohort))
        if row is not None:
            told.append(f"{cohort}: AUC {words(row)}.")
    told.append("By group: see Subgroups.")
    return told
