"""The study page as a person meets it: from disk, without a network, in a real browser, on paper."""

import re
import zlib

import pytest
from contrast import contrast
from study_material import arguments, made_up

from fedbrain.report.material import Material
from fedbrain.report.study_page import study_page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The page of a study of the size of a real one."""
    folder = tmp_path_factory.mktemp("study")
    path = folder / "study.html"
    path.write_text(study_page(Material(**made_up(folder))), encoding="utf-8")
    return path


@pytest.fixture
def page(open_file, path):
    return open_file(path)


def column(page, table, place):
    """Texts of a column of the rows that are shown."""
    return page.eval_on_selector_all(
        f"#{table} tbody tr", f"rows => rows.filter(r => !r.hidden).map(r => r.cells[{place}].textContent)"
    )


def sort_by(page, table, place):
    page.click(f"#{table} thead th:nth-child({place + 1}) button")
    return page.get_attribute(f"#{table} thead th:nth-child({place + 1})", "aria-sort")


def test_it_is_small_and_opens_without_a_complaint_or_a_request(page, path):
    assert path.stat().st_size < 5_000_000
    assert all(url.startswith(("file:", "data:")) for url in page.complaints), page.complaints
    images = page.eval_on_selector_all(
        "img",
        "all => Promise.all(all.map(i => { i.loading = 'eager'; return i.decode().then(() => i.naturalWidth); }))",
    )
    assert len(images) == 3
    assert all(width > 300 for width in images)


def test_a_header_sorts_by_number_or_by_word_and_back(page):
    values = column(page, "results-table", 4)
    numbers = [float(value[:4]) for value in values]
    assert numbers != sorted(numbers, reverse=True)
    assert sort_by(page, "results-table", 4) == "descending"
    assert [float(value[:4]) for value in column(page, "results-table", 4)] == sorted(numbers, reverse=True)
    assert sort_by(page, "results-table", 4) == "ascending"
    assert [float(value[:4]) for value in column(page, "results-table", 4)] == sorted(numbers)
    spread = column(page, "results-table", 5)
    for _ in range(2):  # the site alone has no spread over seeds and stays last
        sort_by(page, "results-table", 5)
        assert column(page, "results-table", 5)[-1] == "–"
    assert sorted(spread) == sorted(column(page, "results-table", 5))
    assert page.eval_on_selector_all("#results-table th[aria-sort]", "all => all.length") == 1
    assert sort_by(page, "results-table", 2) == "ascending"
    rules = column(page, "results-table", 2)
    assert rules[:-1] == sorted(rules[:-1])
    assert rules[-1] == ""
    # The row of sums stays where it is.
    sort_by(page, "scans-table", 1)
    assert page.inner_text("#scans-table tfoot th") == "all"


def test_numbers_sort_as_numbers_where_their_texts_would_not(page):
    page.eval_on_selector_all("details", "all => all.forEach(d => { d.open = true; })")
    sort_by(page, "comparisons-clients", 3)
    values = page.eval_on_selector_all(
        "#comparisons-clients tbody tr", "rows => rows.map(r => Number(r.cells[3].dataset.value))"
    )
    assert min(values) < 0 < max(values)
    assert values == sorted(values, reverse=True)


def test_one_search_filters_all_tables_opens_what_holds_a_hit_and_goes_back(page):
    everything = page.locator("main tbody tr:not([hidden])").count()
    press = page.keyboard.press
    press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("conv_s FEDCE")
    hits = page.eval_on_selector_all("main tbody tr", "rows => rows.filter(r => !r.hidden).map(r => r.textContent)")
    assert hits
    assert all("conv_s" in row and "fedce" in row for row in hits)
    told = re.fullmatch(r"(\d+) rows in (\d+) tables", page.inner_text("#count"))
    assert int(told[1]) == len(hits)
    assert page.is_visible("#comparisons-clients")  # folded before
    assert page.locator("main .nothing").count() == page.locator("main table").count() - int(told[2])
    press("Escape")
    assert page.input_value("#search") == ""
    assert page.locator("main tbody tr:not([hidden])").count() == everything
    assert not page.is_visible("#comparisons-clients")
    assert page.inner_text("#count") == ""
    assert page.locator("main .nothing").count() == 0


def test_dark_is_a_switch_that_is_remembered(open_file, path):
    page = open_file(path, color_scheme="light")

    def ground():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    assert page.inner_text("#theme") == "Dark"
    page.click("#theme")
    dark = ground()
    assert dark != light
    assert page.inner_text("#theme") == "Light"
    page.reload()
    assert ground() == dark
    page.keyboard.press("d")
    assert ground() == light
    assert open_file(path, color_scheme="dark").evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_keys_reach_everything_and_the_focus_is_seen(page):
    page.keyboard.press("Tab")
    assert page.inner_text(":focus") == "To the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.focus("#results-table thead th:nth-child(5) button")
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.get_attribute("#results-table thead th:nth-child(5)", "aria-sort") == "descending"
    folded = page.locator("main details:not([open])").count()
    assert folded > 5
    page.keyboard.press("o")
    assert page.locator("main details:not([open])").count() == 0
    page.keyboard.press("o")
    assert page.locator("main details[open]").count() == 0
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")


def test_methods_are_copied_as_text(open_file, path):
    page = open_file(path, permissions=["clipboard-read", "clipboard-write"])
    page.click("button.copy")
    page.wait_for_function("document.querySelector('button.copy').textContent === 'Copied'")
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("Participants. T1-weighted MRI of")
    assert "https://doi.org/10.2307/2531595" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_and_nothing_overflows(open_file, path, scheme):
    page = open_file(path, color_scheme=scheme)
    shown = ("h1", ".alarm", ".answer", "#results-table td", "figcaption", ".unit", "nav a", ".caution", "main a")
    for selector in (*shown, ".state.filled", ".state.partly", ".state.authors"):
        assert contrast(page, selector) >= 4.5, selector  # WCAG 2.2 AA
    for width in (1400, 700, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width


def test_without_its_script_everything_is_there(open_file, path):
    page = open_file(path, java_script_enabled=False)
    assert page.is_visible("#results-table")
    assert not page.is_visible("#controls")
    page.click("summary >> nth=0")
    assert page.is_visible("text=Left out at intake: 36 scans.")


def test_on_paper_all_parts_are_open_and_light(open_file, path):
    page = open_file(path, color_scheme="dark")
    page.evaluate(
        "addEventListener('beforeprint', () => { window.folded = document.querySelectorAll('main details:not([open])').length; })"
    )
    pdf = page.pdf(prefer_css_page_size=True)
    assert page.evaluate("window.folded") == 0
    assert pdf[:5] == b"%PDF-"
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    assert len(streams) > 10
    assert any(b" Tf" in _inflated(stream) for stream in streams)  # text, no picture of it
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.is_visible("#controls")
    assert not page.is_visible("#contents")


def _inflated(stream):
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""


def test_no_subject_is_named(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(north|east|south|west)\d{3}", text)
    assert arguments()["study"]["title"] not in text
