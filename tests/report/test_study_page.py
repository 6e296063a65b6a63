"""The study page says what the tables say, in words that cannot be misread, as sound HTML."""

import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from docutils.core import publish_parts
from jinja2 import Environment
from study_material import FEDAVG, LOCAL, STUDY, a_table, arguments, comparison, performance_row, summary

from fedbrain.cohorts.intake import ON_EXCLUDE_LIST
from fedbrain.cohorts.splits import KNOWN
from fedbrain.registry import REFERENCES, REGISTRY
from fedbrain.report.citations import OF_RULE, SOURCES
from fedbrain.report.material import Material
from fedbrain.report.sections.checklist import ITEMS
from fedbrain.report.sections.methods import ENCODERS, EXTRACTORS, INTENSITIES, MAPS
from fedbrain.report.study_page import SECTIONS, landing_page, study_page
from fedbrain.tables import COMPARISONS, DUPLICATES, HARMONIZATION, PERSONALISATION, PRIVACY, TRANSFER

EVIL = '"><script>alert(1)</script><b>&amp;{{ 7 * 191 }}{% raw %}'
VOID = {"meta", "input", "img", "br", "path", "rect", "link"}


@pytest.fixture
def given():
    return arguments()


def write(given, **changes):
    return study_page(Material(**given | changes))


class Checked(HTMLParser):
    """Elements of a page; raises where tags are not closed as they were opened."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not set(self.open) & {"script", "style"}:
            self.texts.append(data)

    def every(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def words(html):
    """The text of HTML, each run of white space a space."""
    return " ".join(" ".join(Checked(html).texts).split())


def section(html, name):
    return re.search(rf'<section id="{name}".*?</section>', html, re.DOTALL)[0]


def rows_of(html, table):
    """The cells of each row of a table's body, as text."""
    body = re.search(rf'<table id="{table}">.*?<tbody>(.*?)</tbody>', html, re.DOTALL)[1]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [
        [unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in rows
    ]


def test_the_page_is_sound_html_with_one_title_landmarks_and_unique_ids(given):
    page = Checked(write(given))
    assert len(page.every("h1")) == len(page.every("main")) == len(page.every("title")) - 1 == 1  # and that of the SVG
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in page.elements}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert set(attributes.get(name, "").split()) <= set(ids)
    for attributes in page.every("a"):
        assert not attributes["href"].startswith("#") or attributes["href"][1:] in ids
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))


def test_every_table_has_a_caption_and_cells_for_every_column(given):
    html = write(given)
    tables = re.findall(r"<table id.*?</table>", html, re.DOTALL)
    assert len(tables) > 12
    for table in tables:
        assert re.search(r'<caption id="[^"]+">[^<]', table)
        width = table.count('<th scope="col"')
        for row in re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1], re.DOTALL):
            assert len(re.findall(r"<t[hd][ >]", row)) == width


def test_every_section_is_in_the_contents_and_missing_tables_leave_theirs_out(given):
    html = write(given)
    shown = re.findall(r'<section id="([^"]+)"', html)
    assert re.findall(r'<li><a href="#([^"]+)"', html)[: len(shown)] == shown
    optional = {"transfer", "personalisation", "explanation"}
    assert set(shown) == {part.id for part in SECTIONS} - optional | {"checklist"}


def test_cohorts_that_no_model_has_seen_by_hand(given):
    place = {"head": "linear", "tuning": "frozen", "aggregation": "fedavg", "kind": "left out", "tested": "test"}
    counts = {"subjects": 9, "positives": 4, "negatives": 5}
    rows = [
        place | counts | {"cohort": "a", "model": model, "metric": "auc", "value": value, "low": low, "high": high}
        for model, value, low, high in (
            ("unseen", 0.66, 0.51, 0.8),
            ("seen", 0.7, 0.6, 0.85),
            ("difference", -0.04, -0.2, 0.1),
        )
    ]
    rows[2]["p_holm"] = 0.4
    mean = place | {"cohort": "mean", "model": "unseen", "metric": "auc", "value": 0.68, "low": 0.5, "high": 0.8}
    rows.append(mean | {"prediction_low": 0.3, "prediction_high": 0.95, "tau": 0.21, "cohorts": 4})
    rows += [rows[0] | {"metric": "brier", "value": 0.2}, rows[0] | {"metric": "auc_delong", "low": 0.45, "high": 0.82}]
    html = write(given, extra={"transfer": a_table(TRANSFER, rows)})
    cell = ["linear", "frozen", "fedavg"]
    assert rows_of(html, "transfer-table") == [
        [
            *cell,
            "a",
            "left out",
            "test",
            "0.66 (0.45 to 0.82)",  # few subjects: DeLong's
            "0.70 (0.60 to 0.85)",
            "−0.04 (−0.20 to +0.10)",
            "0.40",
            "4",
            "5",
        ],
    ]
    seen = "On people of cohorts that it has not seen, linear / frozen / fedavg reaches 0.68 (0.50 to 0.80) on cohorts that were left out"
    assert seen in words(section(html, "summary"))
    assert "trained without one cohort at a time" in section(html, "methods")
    assert "Hartung" in section(html, "methods")
    assert "Hartung" not in write(given)
    assert rows_of(html, "transfer-mean") == [
        [*cell, "test", "0.68 (0.50 to 0.80)", "0.68 (0.30 to 0.95)", "0.21", "4"]
    ]
    assert "joins later" in section(html, "transfer")


def test_models_of_a_cohorts_own_and_attacks_on_models_by_hand(given):
    own = comparison("linear/frozen/ditto", FEDAVG, "b", -0.05, 0.6, 1.0) | {"against": "global", "training": 12}
    cell = ["linear", "frozen", "fedavg"]
    attack = dict(zip(("head", "tuning", "aggregation"), cell)) | {
        "client": "a",
        "attack": "lira",
        "low": 0.4,
        "high": 0.7,
    }
    attack |= {"members": 12, "nonmembers": 9, "shadows": 4, "value": 0.55, "seed": 0}
    found = [attack | {"metric": "auc"}, attack | {"metric": "auc_delong", "low": 0.35, "high": 0.72}]
    found.append(attack | {"metric": "tpr_at_least_fpr", "fpr": 0.1, "value": 0.25})
    extra = {"personalisation": a_table(PERSONALISATION, [own]), "privacy": a_table(PRIVACY, found)}
    study = STUDY | {"evaluation": STUDY["evaluation"] | {"privacy": {"cells": [cell], "shadows": 4}}}
    html = write(given, extra=extra, study=study)
    assert "with 4 shadow models" in section(html, "methods")
    assert rows_of(html, "personalisation-table") == [
        ["linear / frozen / ditto", "global", "linear / frozen / fedavg", "b", "−0.05 (−0.15 to +0.05)", "0.60", "1.00"]
        + ["0.021", "12", "4", "5"]
    ]
    row = [
        *cell,
        "a",
        "LiRA",
        "0.55 (0.35 to 0.72)",
        "–",
        "0.25 (0.40 to 0.70)",
        "10.0 %",
        "12",
        "9",
        "4",
    ]
    assert rows_of(html, "privacy-table") == [row]
    assert "was not measured" in section(write(given), "privacy")


def test_maps_are_shown_by_their_figure_and_external_cohorts_are_named(given):
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 36"></svg>'
    maps = {"explanation": {"methods": ["integrated_gradients", "rollout"]}}
    study = STUDY | {"evaluation": STUDY["evaluation"] | maps}
    html = write(given, figures={"explanation-linear-frozen-fedavg": svg}, external=["b"], study=study)
    assert "Axiomatic attribution" in section(html, "methods")
    assert "scrambled weights" in section(html, "explanation")
    assert section(html, "explanation").count("<img") == 1
    assert "b: tested on only, and not among the pooled" in section(html, "results")


def test_text_of_users_is_text_everywhere(given):
    names = {"a": f"north{EVIL}", "b": "b"}
    changed = {}
    for key, value in given.items():
        if isinstance(value, dict) and set(value) == {"a", "b"}:
            value = {names[cohort]: table for cohort, table in value.items()}
        elif isinstance(value, pd.DataFrame):
            value = value.replace({"cohort": names, "client": names})
        changed[key] = value
    volumes = changed["volumes"]["b"].assign(reason=[None, None, f"the series is called {EVIL}"])
    changed["volumes"] = changed["volumes"] | {"b": volumes}
    changed["study"] = STUDY | {"title": f"A study {EVIL}", "class_names": [f"control {EVIL}", "case"]}
    changed["summaries"] = [summary(warnings=[EVIL])]
    html = write(changed)
    assert "<script>alert" not in html
    assert "<b>" not in html
    page = Checked(html)
    assert len(page.every("script")) == 2
    text = " ".join(page.texts)
    assert text.count(EVIL) > 10
    for told in (f"A study {EVIL}", f"the series is called {EVIL}", f"control {EVIL}", f"north{EVIL}"):
        assert told in text, told


def test_nothing_is_asked_of_the_network(given):
    html = write(given)
    assert "default-src 'none'" in html
    assert not re.search(r"""(src|srcset)=["']?(?!data:)[a-z]*:?//""", html)
    assert "@import" not in html
    assert "url(" not in html.replace("url(#flow-head)", "")


def test_figures_lie_in_the_page_with_words_for_what_they_show(given):
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 36"><title>t</title></svg>'
    names = ["auc_forest", "learning_curves-linear-frozen", "site_effects-sam_med3d", "something_new"]
    page = Checked(write(given, figures=dict.fromkeys(names, svg)))
    alts = {attributes["alt"] for attributes in page.every("img")}
    assert len(alts) == len(names)
    forest = next(alt for alt in alts if alt.startswith("AUC of every cell"))
    assert "Highest: linear / frozen / fedavg, 0.71 (0.52 to 0.88). Lowest: linear / frozen / local, 0.60" in forest
    assert "Knowing the cohort alone gives 0.58 (0.44 to 0.71)" in forest
    assert any("Best round, chosen on validation subjects: fedavg 3, local 3." in alt for alt in alts)
    assert all(int(attributes["width"]) == 96 and int(attributes["height"]) == 48 for attributes in page.every("img"))
    assert "Something new" in " ".join(page.texts)
    for attributes in page.every("svg"):
        assert attributes["role"] == "img"
        assert attributes["aria-labelledby"]


def test_random_weights_and_phantoms_are_said_first_and_only_if_true(given):
    html = write(given, phantoms=["a", "b"])
    assert html.index("Untrained encoder") < html.index("What was asked")
    assert html.index("All cohorts are simulated") < html.index("What was asked")
    answer = html[html.index('id="answer"') :]
    assert answer.index("Untrained encoder") < answer.index("of 100 such pairs")
    assert "Simulated: a: computed heads" in write(given, phantoms=["a"])
    trained = {"summaries": [summary(weights="sam_med3d_turbo.pth sha256:0")]}
    trained |= {"study": STUDY | {"encoder": {"name": "sam_med3d", "weights": "/data/sam_med3d_turbo.pth"}}}
    text = words(write(given, **trained))
    assert "Untrained" not in text
    assert "imulated:" not in text
    assert "Read this number with care" not in text


def test_an_encoder_that_has_seen_the_test_cohort_is_an_alarm(given):
    brainiac = STUDY | {"encoder": {"name": "brainiac", "weights": "/data/BrainIAC.ckpt"}}
    html = write(given, study=brainiac)
    before = html[: html.index("What was asked")]
    assert "Leakage" in before
    assert "a: ADNI" in before
    assert "b:" not in before[before.index("Leakage") :].split("</p>")[0]
    assert "Leakage" not in write(given, study=STUDY | {"encoder": {"name": "brainiac", "weights": "random"}})
    sam = STUDY | {"encoder": {"name": "sam_med3d", "weights": "/data/sam_med3d_turbo.pth"}}
    assert "Leakage" not in write(given, study=sam)


def test_the_answer_is_said_in_words_with_its_interval_and_what_it_is_not(given):
    html = section(write(given), "summary")
    text = words(html)
    assert "in about 71 of 100 such pairs : AUC 0.71 (0.52 to 0.88), 95 % interval in brackets" in text
    assert "tested on 9 persons (4 with dementia, 5 control)" in text
    assert "it finds 0.72 (0.62 to 0.82) of the cases and clears 0.63 (0.53 to 0.73) of the controls" in text
    assert "With each hospital alone (local) the same head and tuning reach 0.60 (0.41 to 0.80)" in text
    assert "reaches 0.58 (0.44 to 0.71)" in text  # what knowing the site alone is worth
    assert "4 cases and 5 controls are few" in text
    assert "guessing is not ruled out" not in text
    given["performance"].loc[0, "low"] = 0.45
    assert "guessing is not ruled out" in words(section(write(given), "summary"))
    given["performance"]["value"] = np.nan
    assert "No federated cell has a pooled AUC" in words(write(given))


def test_the_best_of_several_cells_is_said_to_be_picked(given):
    assert "picked after looking" not in write(given)
    other = performance_row("conv_s", "fedavg", "pooled", 0.69, 0.45, 0.8)
    given["performance"] = pd.concat([given["performance"], pd.DataFrame([other])], ignore_index=True)
    text = words(section(write(given), "summary"))
    assert "best of 2 federated cells, picked after looking at the test subjects" in text
    assert "interval of 1 of the 2 federated cells includes 0.50" in text
    assert "to two digits" not in text
    given["performance"].loc[given["performance"]["head"] == "conv_s", "value"] = 0.709
    assert "same AUC to two digits: 1 other federated cell." in words(section(write(given), "summary"))


def test_the_flow_counts_scans_and_subjects_by_hand(given):
    html = section(write(given), "cohorts")
    drawn = words(re.search(r"<svg.*?</svg>", html, re.DOTALL)[0])
    for told in (
        "Found: 7 scans 6 subjects, 2 cohorts",
        "Left out at intake: 1 scan 1: no diagnosis",
        "Taken in: 6 scans 6 subjects",
        "Failed in preprocessing: 2 scans 2: constant",
        "Dropped: 0 scans",
        "Used: 4 scans 4 subjects",
        "Training: 1 subject 1 control, 0 dementia a: 1 + 0",
        "Validation: 1 subject 0 control, 1 dementia b: 0 + 1",
        "Test: 2 subjects 1 control, 1 dementia a: 0 + 1 b: 1 + 0",
    ):
        assert told in drawn, told
    outline = words(html[html.index("The diagram in words") :].split("</details>")[0].partition(">")[2])
    assert "Failed: constant: 2." in outline
    assert "Test, b: 1 subject (1 control, 0 dementia)." in outline


def test_a_scan_whose_person_trains_elsewhere_is_dropped_with_that_reason_and_not_used(given):
    sound = given["quality"]["b"].query("kept == 1")["scan"].iloc[0]
    given["dropped"] = pd.DataFrame([{"cohort": "b", "scan": sound, "reason": KNOWN}])
    html = section(write(given), "cohorts")
    drawn = words(re.search(r"<svg.*?</svg>", html, re.DOTALL)[0])
    assert "Dropped: 1 scan 1: a person that another cohort has" in drawn
    assert "Used: 3 scans" in drawn
    assert next(row for row in rows_of(html, "scans-table") if row[0] == "b")[-2:] == ["1", "1"]


def test_long_reasons_are_counted_together_in_the_diagram_and_all_told_below(given):
    many = pd.DataFrame({"reason": [f"reason {number} {'of many words ' * 9}" for number in range(10)]})
    html = section(write(given, excluded={"a": many, "b": many.iloc[:0]}), "cohorts")
    drawn = re.search(r"<svg.*?</svg>", html, re.DOTALL)[0]
    assert "4: 4 further reasons, listed below" in unescape(drawn)
    assert len([row for row in rows_of(html, "reasons-table") if row[1] == "left out at intake"]) == 10
    edges = re.findall(r'<rect class="(\w+)" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', drawn)
    boxes = [tuple(map(int, edge[1:])) for edge in edges]
    for place, (x, y, w, h) in enumerate(boxes):  # no box lies on another
        for x2, y2, w2, h2 in boxes[place + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    height = float(re.search(r'viewBox="0 0 900 (\d+)"', drawn)[1])
    assert max(y + h for _, y, _, h in boxes) <= height


def test_counts_results_and_cost_are_those_of_the_tables(given):
    html = write(given)
    assert rows_of(html, "scans-table") == [["a", "4", "1", "1", "0", "2"], ["b", "3", "0", "1", "0", "2"]]
    assert rows_of(html, "subjects-table")[0] == ["a", "2", "1", "1", "1", "0", "1", "1", "65.0 (7.1)", "50 %"]
    assert ">7</td>" in html[html.index("<tfoot>") :]  # scans found in all
    results = rows_of(html, "results-table")
    assert results[0][:7] == ["linear", "frozen", "fedavg", "federated", "0.71 (0.52 to 0.88)", "0.012", "2"]
    assert results[1][3:5] == ["reference", "0.60 (0.41 to 0.80)"]
    assert results[2][:7] == ["site only", "", "", "baseline", "0.58 (0.44 to 0.71)", "–", "–"]
    assert rows_of(html, "clients-table") == [
        ["linear", "frozen", "fedavg", "0.65 (0.40 to 0.90)", "–"],
        ["linear", "frozen", "local", "–", "–"],
    ]
    costs = rows_of(html, "cost-table")[0]
    assert costs[:7] == ["linear", "frozen", "fedavg", "770", "0.00083 %", "770", "3.08 kB"]
    assert {"30.8 kB", "52.4", "< 0.0001", "184.3"} <= set(costs)
    assert rows_of(html, "machine-table")[0][3:] == ["500 MB", "400 MB", "0.25", "0.5", "0.01", "2.0"]
    text = words(html)
    assert "would send up to 372 MB each way" in text
    assert ["preprocessing", "a: 1 scan failed: constant"] in rows_of(html, "warnings-table")
    assert ["evaluation", "AUC of b: one class only"] in rows_of(html, "warnings-table")
    assert "do not stand for their session: b 3 (another was chosen: 2; contrast-enhanced: 1)." in text
    assert {"options of lora", "training of linear"} <= {row[0] for row in rows_of(html, "settings-table")}


def test_what_is_sorted_by_is_the_number_that_is_shown(given):
    html = write(given)
    cells = re.findall(r'data-value="([^"]+)">(−?\d+\.\d+) \(', html)
    assert len(cells) > 15
    for value, shown in cells:
        digits = len(shown.partition(".")[2])
        assert abs(float(value) - float(shown.replace("−", "-"))) <= 0.5001 * 10**-digits


def test_the_two_kinds_of_uncertainty_by_hand(given):
    given["performance"].loc[0, ["low", "high", "seed_sd"]] = 0.71 - 1.96 * 0.03, 0.71 + 1.96 * 0.03, 0.04
    given["performance"].loc[3, "seed_sd"] = np.nan
    html = section(write(given), "results")
    assert rows_of(html, "uncertainty-table") == [
        ["linear", "frozen", "fedavg", "0.71", "0.030", "0.040", "64 %", "the random start"],  # 16 / 25
        ["linear", "frozen", "local", "0.60", "0.099", "–", "–", "not known: one seed"],
    ]
    assert "Of 1 cells that were trained several times" in words(html)


def test_what_is_flagged_dropped_and_excluded_is_counted_and_the_choice_is_said(given):
    html = section(write(given), "quality")
    text = words(html)
    assert "No scan is dropped for its quality" in text
    assert "at least 0.93 for mask overlap with the template" in text
    assert "are no part of it or of Snakemake's report" in text
    assert '<a href="../quality/a.html"' in html
    assessed = given["quality"]["a"].astype({"reason": "string"}).assign(mask_dice=[0.9, 0.96, np.nan])
    told = "mask_dice 0.9 is under the limit 0.93; cjv 0.9 (z +4.0, median 0.5)"
    assessed.loc[1, ["flagged", "kept", "reason"]] = 1, 0, told
    listed = pd.concat([given["excluded"]["a"], pd.DataFrame({"reason": [ON_EXCLUDE_LIST]})], ignore_index=True)
    given |= {"quality": given["quality"] | {"a": assessed}, "excluded": given["excluded"] | {"a": listed}}
    settings = {"outlier_z": 4, "limits": {}, "drop": "limits", "in_report": True}
    html = write(given, study=STUDY | {"quality": settings})
    text = words(section(html, "quality"))
    assert "robust z over 4)" in text
    assert "Scans beyond a limit are dropped" in text
    assert "must stay with the data, too" in text
    flagged_for = "mask overlap with the template (1); coefficient of joint variation (1)"
    assert rows_of(html, "flags-table")[0] == ["a", "scans of a", flagged_for, "3", "1", "1", "1", "1"]
    assert rows_of(html, "scans-table")[0] == ["a", "5", "2", "1", "1", "1"]
    metric = rows_of(html, "metrics-table")[0]
    assert metric == ["mask overlap with the template", "low", "0.93 (0.903 to 0.957)", "–"]


def test_images_that_occur_twice_are_a_warning_without_an_id(given):
    rows = [
        (1, "a", "s1", 0),
        (1, "b", "s9", 1),
        (2, "a", "s2", 1),
        (2, "a", "s2", 1),
        (3, "b", "s3", 0),
        (3, "a", "s4", 0),
    ]
    table = pd.DataFrame(rows, columns=["image", "cohort", "subject", "label"])
    table["scan"], table["same"] = "sub-secret", "voxels"
    html = write(given, duplicates=a_table(DUPLICATES, table))
    assert "a and b: 2 images occur more than once, 2 of them under several subject ids" in html
    assert "a: 1 image occurs more than once, 0 of them" in html
    assert html.count("The diagnoses of 1 contradict each other") == 1
    assert "secret" not in html
    assert "more than once" not in write(given)


def test_a_path_in_an_unforeseen_error_does_not_reach_the_page(given):
    volumes = given["volumes"]["a"].assign(reason=[None, None, "unforeseen: OSError: /data/sub-secret/x.nii.gz"])
    html = write(given, volumes={"a": volumes, "b": volumes})
    assert "unforeseen: OSError; see the table of the shard" in html
    assert "secret" not in html


def test_comparisons_give_the_difference_with_its_interval_first_and_p_after(given):
    html = section(write(given), "comparisons")
    text = words(html)
    assert "Every pair of cells is compared" in text
    assert "1 of 3 stay below 0.05" in text
    assert "(marked *) are 1 of the tests, 1 of those below 0.05 among them" in text
    row = [
        "linear / frozen / fedavg",
        "site only",
        "pooled",
        "+0.13 (+0.03 to +0.23)",
        "0.034",
        "0.068",
        "0.021",
        "9",
        "4",
    ]
    assert rows_of(html, "comparisons-against") == [row]
    assert rows_of(html, "comparisons-pairs")[0][3:6] == ["+0.11 (+0.01 to +0.21)", "< 0.001 *", "0.001 *"]
    assert rows_of(html, "comparisons-clients")[0][2:4] == ["a", "−0.05 (−0.15 to +0.05)"]
    named = dict(STUDY["evaluation"], comparisons={"reference": ["linear", "frozen", "local"], "family": "client"})
    text = words(section(write(given, study=STUDY | {"evaluation": named}), "comparisons"))
    assert "Every cell is compared with linear / frozen / local" in text
    assert "those of one cohort" in text
    assert "nothing to compare it with" in write(given, comparisons=given["comparisons"].iloc[:0])


def test_a_long_table_is_opened_by_the_reader_and_a_very_long_one_points_to_the_file(given):
    rows = [comparison(f"h/t/{n}", LOCAL, "a", 0.0, 0.5, 1.0) for n in range(450)]
    html = section(write(given, comparisons=a_table(COMPARISONS, rows)), "comparisons")
    assert "<summary>Each cohort&#x27;s test subjects (450 rows)</summary>" in html
    assert len(rows_of(html, "comparisons-clients")) == 400
    assert "The first 400 of 450 rows; all are in results/evaluation/comparisons.tsv" in html


def test_calibration_and_thresholds_by_hand(given):
    for metric, value in (("calibration_slope", 0.44), ("calibration_intercept", -0.15), ("brier", 0.19)):
        row = performance_row("linear", "fedavg", "pooled", value, value - 0.1, value + 0.1, metric=metric)
        given["performance"] = pd.concat([given["performance"], pd.DataFrame([row])], ignore_index=True)
    html = write(given)
    assert rows_of(html, "calibration-table")[0][3:] == [
        "0.44 (0.34 to 0.54)",
        "−0.15 (−0.25 to −0.05)",
        "0.20 (0.20)",  # mean over seeds, and by chance
        "0.19 (0.09 to 0.29)",
    ]
    row = rows_of(html, "thresholds-table")[0]
    assert row[3:] == [
        "pooled",
        "0.41 (0.31 to 0.51)",
        "–",
        "0.37 (SD 0.04)",
        "0.72 (0.62 to 0.82)",
        "0.63 (0.53 to 0.73)",
        "–",
    ]
    assert "a: no case among the validation scans: 0.5 stands, for 1 cell" in words(html)


def test_a_limit_that_is_not_finite_is_a_dash_beside_the_other(given):
    row = performance_row("linear", "fedavg", "pooled", 2.5, 0.31, metric="calibration_slope")
    given["performance"] = pd.concat([given["performance"], pd.DataFrame([row])], ignore_index=True)
    assert "2.50 (0.31 to –)" in write(given)


def test_small_groups_are_warned_of_and_only_the_drawn_cells_are_shown(given):
    html = section(write(given), "subgroups")
    assert "1 of the 2 groups have fewer than ten cases" in words(html)
    assert rows_of(html, "subgroups-0") == [
        ["sex", "F", "30", "30", "0.81 (0.61 to 1.01)", "–", "–", "reference", "reference"],
        ["sex", "M (too few)", "4", "30", "0.62 (0.42 to 0.82)", "–", "–"]
        + ["−0.21 (−0.41 to −0.01)", "+0.13 (−0.07 to +0.33)"],
    ]
    assert "0.55" not in html
    assert "asks for no subgroups" in write(given, subgroups=given["subgroups"].iloc[:0])


def test_few_subjects_take_delongs_interval_and_the_page_says_whose(given):
    rows = [performance_row("linear", "fedavg", "pooled", 0.71, 0.31, 0.93, metric="auc_delong")]
    given["performance"] = pd.concat([given["performance"], pd.DataFrame(rows)], ignore_index=True)
    html = write(given)
    assert "0.71 (0.31 to 0.93)" in html
    assert "0.71 (0.52 to 0.88)" not in html
    assert "AUCs of pooled have DeLong" in html
    given["performance"][["positives", "negatives"]] = 40
    html = write(given)
    assert "0.71 (0.52 to 0.88)" in html
    assert "interval instead" not in html


def test_site_effects_are_told_with_chance_and_with_what_else_tells_cohorts_apart(given):
    html = section(write(given), "site-effects")
    text = words(html)
    assert "balanced accuracy of 0.83 (0.73 to 0.93) , where 0.50 is chance" in text
    assert "among controls alone with 0.77 (0.67 to 0.87), from age and sex alone with 0.52" in text
    assert "In half of the channels 31% or more of the variance" in text
    row = ["channel means", "none", "all", "everybody", "33", "0.83 (0.73 to 0.93)", "0.50", "0.88", "0.88"]
    assert rows_of(html, "sites-sam_med3d")[0] == row
    assert "hospitals that share no embedding cannot compute it" in text
    assert "No tuning of this study harmonizes the embeddings" in text
    without = write(given, site_effects={}, site_variance={})
    assert "was not measured" in section(without, "site-effects")


def test_what_a_harmonization_moved_and_sent_is_on_the_page(given):
    study = STUDY | {"tuning": {"combat": {"kind": "frozen", "harmonization": "combat", "covariates": ["age"]}}}
    row = {"client": "a", "subjects": 12, "numbers_up": 1155, "bytes_up": 9240, "bytes_down": 9216}
    table = a_table(HARMONIZATION, [row | {"location": 1.234, "scale": 0.876, "iterations": 9, "constant_channels": 0}])
    html = write(given, study=study, harmonization={"combat": table})
    assert rows_of(html, "harmonization-table") == [["combat", "age", "a", "12", "1.23", "0.88", "9.24 kB", "9.22 kB"]]
    assert "without labels" in section(html, "site-effects")
    assert "Harmonization of multi-site" in section(html, "methods")


def test_methods_name_versions_and_number_their_sources_in_order(given):
    html = section(write(given, versions={"python": "3.11.7", "fedbrain": "0.1.0", "snakemake": "9.27.1"}), "methods")
    text = words(html)
    numbers = [int(number) for group in re.findall(r"\[([\d, ]+)\]", text) for number in group.split(", ")]
    first = list(dict.fromkeys(numbers))
    assert first == list(range(1, len(first) + 1))
    sources = re.findall(r"<li>(.*?)</li>", html, re.DOTALL)
    assert len(sources) == len(first)
    assert "DeLong" in sources[next(i for i, source in enumerate(sources) if "2531595" in source)]
    for told in ("python 3.11.7", "fedbrain 0.1.0", "torch 2", "1,000 percentile bootstrap resamples"):
        assert told in text, told
    assert "of 2 cohorts (a and b)" in text
    assert "with random, untrained weights" in text
    assert "[RECRUITMENT" in text
    assert "50, 20 and 30 %: 1, 1 and 2 subjects" in text


def test_every_name_that_methods_speak_of_has_its_words(config_schema):
    assert set(EXTRACTORS) == set(REGISTRY["brain_extractor"])
    assert set(INTENSITIES) == set(REGISTRY["intensity"])
    assert set(ENCODERS) == set(REGISTRY["encoder"])
    methods = config_schema["properties"]["evaluation"]["properties"]["explanation"]["properties"]["methods"]
    assert set(MAPS) == set(methods["items"]["enum"])
    assert set(OF_RULE) == set(REGISTRY["aggregation"]) - {"simpleavg"}  # which is a mean, and nobody's
    assert not set(OF_RULE) & set(REFERENCES)
    assert set(OF_RULE.values()) <= set(SOURCES)
    assert all(where.startswith(("https://doi.org/10.", "https://arxiv.org/abs/", "")) for _, where in SOURCES.values())


def test_a_fitted_intensity_says_where_its_scale_is_from_and_what_travelled(given):
    def told(**preprocessing):
        options = {"extractor": "deepbet", "nyul": {"scale": "client"}} | preprocessing
        return write(given, study=STUDY | {"preprocessing": options})

    assert "nyul" not in told(intensity="encoder")
    assert "nothing of it left the cohort" in told(intensity="nyul")
    assert "eleven numbers and two counts travelled" in told(intensity="nyul", nyul={"scale": "shared"})


def test_the_model_card_has_all_headings_and_the_best_cells_numbers(given):
    given["summaries"].append(summary("local", weights="none (trained from scratch)"))
    html = section(write(given, phantoms=["a", "b"]), "model-card")
    headings = ["Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data"]
    headings += [
        "Quantitative analyses",
        "Ethical considerations",
        "Caveats and recommendations",
    ]  # Mitchell et al. 2019
    assert re.findall("<dt>(.*?)</dt>", html) == headings
    text = words(html)
    assert "Best federated cell: linear / frozen / fedavg" in text
    assert "All test subjects: AUC 0.71 (0.52 to 0.88)." in text
    assert "a: AUC 0.65 (0.40 to 0.90)." in text
    assert "The encoder was not pretrained" in text
    assert "weights in that cell: random (seed 3)." in text
    assert "No person's data were used" in text
    assert "some of whom may not be able to consent" in words(section(write(given, phantoms=["a"]), "model-card"))
    assert "Test: 2 subjects (1 control, 1 dementia) of 2 cohorts." in text
    assert "phantoms" in text


def test_the_checklist_has_27_items_and_points_to_sections_that_are_there(given):
    html = write(given)
    numbers = [row[0] for row in rows_of(html, "checklist-table")]
    assert numbers == [item.number for item in ITEMS]
    assert sorted({int(re.match(r"\d+", number)[0]) for number in numbers}) == list(range(1, 28))
    states = [row[3] for row in rows_of(html, "checklist-table")]
    told = re.search(r"(\d+) are filled by the run, (\d+) partly, (\d+) are to be", words(html))
    kinds = ("filled by the run", "partly", "to be written by the authors")
    assert [int(n) for n in told.groups()] == [states.count(kind) for kind in kinds]
    sections = set(re.findall(r'<section id="([^"]+)"', html))
    assert set(re.findall(r'<a href="#([^"]+)"', section(html, "checklist"))) <= sections


def test_the_landing_page_is_the_page_in_a_frame_and_no_template(given):
    page = write(given, study=STUDY | {"title": f"A study {EVIL}"})
    text = landing_page(page)
    assert max(map(len, text.splitlines())) < 10_000  # what docutils reads of a line
    text = Environment(trim_blocks=True, lstrip_blocks=True).from_string(text).render()
    html = publish_parts(text, writer_name="html", settings_overrides={"halt_level": 2})["html_body"]
    assert "<script>" not in html  # the report writes it into a script of its own
    assert "1337" not in html
    framed = unescape(re.search(r'srcdoc="([^"]*)"', html)[1])
    assert re.sub(r"\s+", " ", framed) == re.sub(r"\s+", " ", page.replace('href="../quality', 'href="quality'))
    assert 'href="quality/a.html"' in framed
