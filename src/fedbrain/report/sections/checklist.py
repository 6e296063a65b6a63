"""TRIPOD+AI: which items of the reporting guideline the run fills, and which its authors must write.

Numbers as in Collins et al., BMJ 385:e078378, 2024; what each item asks is said in our own words.
"""

from dataclasses import dataclass

from fedbrain.report.html import Html, columns, join, link, p, table
from fedbrain.report.material import Material

FILLED, PARTLY, AUTHORS = "filled by the run", "partly", "to be written by the authors"


@dataclass(frozen=True)
class Item:
    """An item: what it asks, what the run does about it, and the section of the page where that is (none: nowhere)."""

    number: str
    part: str
    asks: str
    state: str
    where: str = ""
    missing: str = ""


ITEMS = (
    Item("1", "Title", "Say that a prediction model is developed or evaluated, for whom, and what it predicts", AUTHORS),
    Item("2", "Abstract", "Follow the guideline's own list for abstracts", PARTLY, "summary", "the abstract itself"),
    Item("3a", "Introduction", "The health problem, diagnostic or prognostic, and why a model; earlier models", AUTHORS),
    Item("3b", "Introduction", "For whom and for what in the care pathway the model is meant", PARTLY, "model-card", "the pathway"),
    Item("3c", "Introduction", "Known inequalities in health between groups", AUTHORS),
    Item("4", "Introduction", "Aims: development, evaluation or both", FILLED, "summary"),
    Item("5a", "Methods", "Where the data come from, apart for training and test, and why they represent the population", PARTLY, "cohorts", "why these cohorts"),
    Item("5b", "Methods", "When participants were recruited and followed", AUTHORS),
    Item("6a", "Methods", "Setting, number and places of the centres", PARTLY, "cohorts", "setting and places"),
    Item("6b", "Methods", "Who was eligible", PARTLY, "cohorts", "criteria of the source studies"),
    Item("6c", "Methods", "Treatments that participants had", AUTHORS),
    Item("7", "Methods", "How data were prepared and their quality checked, in all groups alike", FILLED, "quality"),
    Item("8a", "Methods", "What the outcome is, how and when it was assessed", PARTLY, "settings", "how the cohorts diagnosed"),
    Item("8b", "Methods", "Who assessed it, if judgement is needed", AUTHORS),
    Item("8c", "Methods", "Whether assessors knew the predictors", AUTHORS),
    Item("9a", "Methods", "How predictors were first chosen", FILLED, "methods"),
    Item("9b", "Methods", "What predictors are, how and when they were measured", PARTLY, "methods", "scanners and protocols"),
    Item("9c", "Methods", "Who measured them, if judgement is needed", FILLED, "methods"),
    Item("10", "Methods", "How the study size was found, and whether it suffices", PARTLY, "results", "the reason for the size"),
    Item("11", "Methods", "What was done about missing data", PARTLY, "cohorts", "data missing before intake"),
    Item("12a", "Methods", "Which data served which purpose; how they were split", FILLED, "methods"),
    Item("12b", "Methods", "How predictors entered the model", FILLED, "methods"),
    Item("12c", "Methods", "Kind of model, how it was built, tuned and validated internally", FILLED, "methods"),
    Item("12d", "Methods", "How differences between centres were treated", FILLED, "site-effects"),
    Item("12e", "Methods", "All measures and plots of performance, and how models were compared", FILLED, "methods"),
    Item("12f", "Methods", "Whether a model was updated after its evaluation", FILLED, "methods", "none was"),
    Item("12g", "Methods", "How predictions are computed when an existing model is evaluated", FILLED, "methods"),
    Item("13", "Methods", "How unequal classes were treated", FILLED, "settings"),
    Item("14", "Methods", "What was done for fairness, and why", PARTLY, "subgroups", "why these groups"),
    Item("15", "Methods", "What the model gives out, and how a class is made of it", FILLED, "calibration"),
    Item("16", "Methods", "How training and test data differ (setting, criteria, outcome, predictors)", FILLED, "cohorts"),
    Item("17", "Methods", "Ethical approval and consent", AUTHORS),
    Item("18a", "Open science", "Money and role of the funders", AUTHORS),
    Item("18b", "Open science", "Conflicts of interest", AUTHORS),
    Item("18c", "Open science", "Where the protocol is", AUTHORS),
    Item("18d", "Open science", "Registration of the study", AUTHORS),
    Item("18e", "Open science", "Whether the data can be had", AUTHORS),
    Item("18f", "Open science", "Whether the code can be had", PARTLY, "settings", "where the config is published"),
    Item("19", "Patients and public", "How patients and the public took part", AUTHORS),
    Item("20a", "Results", "Flow of participants, with and without the outcome", FILLED, "cohorts"),
    Item("20b", "Results", "What participants are like, by centre; what is missing", PARTLY, "cohorts", "clinical scores, education, ethnicity"),
    Item("20c", "Results", "How training and test data differ in predictors and outcome", PARTLY, "cohorts", "age and sex by side"),
    Item("21", "Results", "Participants and cases in each analysis", FILLED, "results"),
    Item("22", "Results", "The whole model, so that others can predict with it", PARTLY, "model-card", "release of the weights (results/runs)"),
    Item("23a", "Results", "Performance with intervals, in groups, too", FILLED, "results"),
    Item("23b", "Results", "How performance differs between centres", FILLED, "results"),
    Item("24", "Results", "Results of an update of the model", FILLED, "methods", "none was made"),
    Item("25", "Discussion", "What the results mean, for fairness, too, and beside other studies", AUTHORS),
    Item("26", "Discussion", "Limits: who is not represented, size, overfitting, missing data", PARTLY, "summary", "limits of the sources"),
    Item("27a", "Discussion", "What to do with poor or missing input when the model is used", PARTLY, "quality", "what to do in a clinic"),
    Item("27b", "Discussion", "What users must do and know", AUTHORS),
    Item("27c", "Discussion", "What should be done next", AUTHORS),
)  # fmt: skip


def checklist(material: Material, sections: dict[str, str]) -> Html:
    """The items as a table.

    sections: titles of the page's sections by id; an item whose section is not there is for the authors.
    """
    rows, counts = [], {FILLED: 0, PARTLY: 0, AUTHORS: 0}
    for item in ITEMS:
        where = item.where if item.where in sections else ""
        state = item.state if where or not item.where else AUTHORS
        counts[state] += 1
        kind = {FILLED: "filled", PARTLY: "partly", AUTHORS: "authors"}[state]
        place = link(f"#{where}", sections[where]) if where else None
        missing = f"{'missing: ' if state == PARTLY else ''}{item.missing}" if item.missing else ""
        rows.append(
            [item.number, item.part, item.asks, Html(f'<span class="state {kind}">{state}</span>'), place, missing]
        )
    return join(
        p(
            f"27 main items in {len(ITEMS)} parts: {counts[FILLED]} are filled by the run, {counts[PARTLY]} partly, {counts[AUTHORS]} are to be "
            "written by the authors. Item numbers are those of TRIPOD+AI (",
            link("https://doi.org/10.1136/bmj-2023-078378", "Collins et al., BMJ 385:e078378, 2024"),
            "); the words are ours, so read the guideline itself before you submit.",
        ),
        table(
            "checklist-table", "TRIPOD+AI checklist", columns("item", "part", "asks", "state", "where", "remark"), rows
        ),
    )
