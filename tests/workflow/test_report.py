"""The report as a person meets it: opened from disk, offline, in a real browser."""

import re
import shutil

import pytest

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser, study, tmp_path):
    """The report alone in an empty folder, the network cut; complaints are collected in ``page.complaints``."""
    report = tmp_path / "report.html"
    shutil.copyfile(study.folder / "results/report.html", report)
    context = browser.new_context(offline=True, viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.complaints = []
    page.on("requestfailed", lambda request: page.complaints.append(f"failed: {request.url[:200]}"))
    page.on("pageerror", lambda error: page.complaints.append(f"error: {error}"))
    page.on("console", lambda message: message.type == "error" and page.complaints.append(message.text))
    page.goto(report.as_uri())
    landed(page)
    yield page
    context.close()


def landed(page):
    """The study page on the report's first page, once it is there."""
    frame = page.frame_locator("#study-page")
    frame.get_by_role("heading", name="Small study").wait_for()
    return frame


def test_the_first_page_is_the_study_page(page):
    text = landed(page).locator("body").inner_text()
    for word in ("Untrained encoder", "Cohorts", "The answer", "Cost", "Model card", "alpha", "beta", "gamma"):
        assert word in text, word
    assert "1 left out: diagnosis MCI is not among the study's labels" in text
    assert re.search(r"alpha: 1 scan failed: ", text)
    assert re.search(r"gamma.*one class", text)
    assert not page.complaints


def test_the_study_page_works_within_the_report(page):
    frame = landed(page)
    frame.locator('#contents a[href="#results"]').click()
    assert frame.locator("#results").evaluate("section => Math.abs(section.getBoundingClientRect().top) < 100")
    frame.locator("#results-table thead th:nth-child(5) button").click()
    assert frame.locator("#results-table thead th:nth-child(5)").get_attribute("aria-sort") == "descending"
    frame.locator("#search").fill("rate_my_lora")
    assert "rate_my_lora" in frame.locator("#results-table tbody tr:not([hidden])").first.inner_text()
    assert frame.locator("#flags-table a").first.evaluate("a => a.href").endswith("/quality/alpha.html")
    assert not page.complaints


def test_the_study_page_stands_by_itself_too(browser, study):
    path = study.folder / "results/report/study.html"
    assert path.stat().st_size < 5_000_000
    context = browser.new_context(offline=True, viewport={"width": 1400, "height": 1000})
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url[:100]))
    page.on("console", lambda message: asked.append(message.text))
    page.goto(path.as_uri())
    images = page.locator("main img")
    assert images.count() == len(list((study.folder / "results/figures").glob("*.svg")))
    for alt in images.evaluate_all("all => all.map(image => image.alt)"):
        assert len(alt) > 40
    assert all(url.startswith(("file:", "data:")) for url in asked), asked
    target = page.locator("#flags-table a").first.evaluate("a => a.href")
    assert (study.folder / "results/quality/alpha.html").as_uri() == target
    context.close()


def test_the_first_page_fits_the_window(page):
    width = page.evaluate("document.scrollingElement.scrollWidth")
    assert width <= 1400
    assert page.locator("#study-page").bounding_box()["width"] > 1000


def test_every_figure_is_visible(page, study):
    figures = sorted((study.folder / "results/figures").glob("*.svg"))
    # Ten for the study; two for each of five models; contribution weights for two of them.
    assert len(figures) == 10 + 2 * 5 + 2
    seen = set()
    for category in ("Performance", "Training", "Data", "Aggregation"):
        page.get_by_text(category, exact=True).first.click()
        page.wait_for_timeout(300)
        # A label with two values is a switch; both positions are looked at.
        switches = page.locator("fieldset label")
        for position in range(max(switches.count(), 1)):
            if switches.count():
                switches.nth(position).click()
                page.wait_for_timeout(300)
            rows = page.locator("table.table-auto tbody tr")
            for index in range(rows.count()):
                rows.nth(index).locator("a").first.click()
                page.wait_for_timeout(300)
                image = page.locator(".p-3 > img")
                box = image.bounding_box()
                assert box["width"] > 500
                assert box["height"] > 150
                assert image.evaluate("node => node.complete && node.naturalWidth > 300")
                seen.add(image.get_attribute("src"))
        page.reload()
        landed(page)
    assert len(seen) == len(figures)
    assert not page.complaints


def test_the_report_needs_nothing_but_itself(study):
    text = (study.folder / "results/report.html").read_text(encoding="utf-8")
    assert not re.search(r"""<(script|link|img|iframe)[^>]+(src|href)=["']https?://""", text)


def test_no_subject_id_is_in_the_report_or_the_logs(study):
    from fedbrain.tables import SCANS, read_table

    results = study.folder / "results"
    logs = [*(results / "logs").rglob("*.log"), *(results / ".snakemake").rglob("*.log")]
    assert len(logs) > 20
    texts = {path.name: path.read_text(errors="replace") for path in logs}
    texts |= {name: (results / name).read_text(encoding="utf-8") for name in ("report.html", "report/study.html")}
    for table in (results / "cohorts").glob("*/scans.tsv"):
        for subject in read_table(table, SCANS)["subject"]:
            for name, text in texts.items():
                assert not re.search(rf"(?<![A-Za-z0-9]){subject}(?![A-Za-z0-9])", text), f"{subject} in {name}"
