"""The page of a cohort holds every scan, worst first, and nothing from outside; used in a real browser, it collects exclusions."""

import io
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest
import yaml
from contrast import contrast
from PIL import Image

from fedbrain.imaging import layout, outliers
from fedbrain.report import quality_page as module
from fedbrain.report.quality_page import quality_page
from fedbrain.tables import VOLUMES

SETTINGS = {"outlier_z": 3.5, "limits": {"mask_dice": {"min": 0.93}}, "drop": "limits"}
BAD = "sub-07"  # beyond a limit
NOISY = "sub-03_ses-a"  # an outlier
BROKEN = "sub-broken"


@pytest.fixture
def cohort(tmp_path):
    """Twelve scans in two shards, one beyond a limit, one noisy, one that failed with a reason full of markup."""
    values = np.random.default_rng(0)
    scans = [f"sub-{number:02}" for number in range(11)] + [BROKEN]
    scans[3] = NOISY
    table = pd.DataFrame({"scan": scans, "subject": scans, "status": ["ok"] * 11 + ["failed"], "shard": [0, 1] * 6})
    table["reason"] = [None] * 11 + ['unforeseen: <img src="http://x/y"> & "so" on; report this']
    table["mask_dice"] = [*(0.96 + 0.002 * values.standard_normal(11)).round(4), None]
    table["cjv"] = [*(0.6 + 0.01 * values.standard_normal(11)).round(4), None]
    table.loc[7, "mask_dice"], table.loc[3, "cjv"] = 0.88, 0.95
    table = table.reindex(columns=[*VOLUMES, "shard", "mask_dice", "cjv"]).astype(VOLUMES)
    for row in table[table["status"] == "ok"].itertuples():
        stream = io.BytesIO()
        grey = values.integers(0, 255, (272, 952), dtype=np.uint8)
        Image.fromarray(grey).save(stream, "WEBP", quality=1)
        path = layout.snapshot_path(tmp_path / str(row.shard), row.scan)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(stream.getvalue())
    return outliers.assess(table.astype({"mask_dice": "Float64", "cjv": "Float64"}), SETTINGS), tmp_path


def write(cohort, **changes):
    arguments = {
        "cohort": "alpha",
        "title": "A study",
        "settings": SETTINGS,
        "exclude": ["sub-99"],
        "volumes": cohort[1],
    }
    return quality_page(cohort[0], **arguments | changes)


def scans_of(html):
    return re.findall(r'<article[^>]* data-scan="([^"]*)"', html)


def test_outliers_come_first_then_failed_scans_then_the_rest(cohort):
    scans = scans_of(write(cohort))
    assert scans[:3] == [BAD, NOISY, BROKEN]
    assert sorted(scans) == sorted(cohort[0]["scan"])
    z = outliers.zscores(cohort[0]).assign(scan=cohort[0]["scan"]).set_index("scan").loc[scans[3:]]
    worst = np.maximum(-z["mask_dice"], z["cjv"])
    assert worst.is_monotonic_decreasing


def test_every_sound_scan_has_its_own_picture_with_words_for_it(cohort):
    html = write(cohort)
    pictures = re.findall(
        r'<img alt="([^:"]*):[^"]*"[^>]*loading="lazy"[^>]*src="data:image/webp;base64,([^"]+)"', html
    )
    assert [scan for scan, _ in pictures] == [scan for scan in scans_of(html) if scan != BROKEN]
    assert len({data for _, data in pictures}) == 11


def test_reasons_are_text_and_numbers_stand_with_their_z(cohort):
    html = write(cohort)
    assert "<img src=" not in html.replace("<img alt", "")
    assert unescape(html).count('unforeseen: <img src="http://x/y"> & "so" on; report this') == 1
    card = html.split(f'data-scan="{NOISY}"')[1].split("</article>")[0]
    assert re.search(r"<div class=bad><dt>coefficient of joint variation</dt><dd>0.95 <span>z \+\d", card)
    assert card.count("class=bad") == 1


def test_nothing_is_asked_of_the_network(cohort):
    html = write(cohort)
    assert not re.search(r"""(src|href)=["']?(?!data:)[a-z]*:?//""", html.replace("&quot;", "'").split("<body>")[0])
    assert "default-src 'none'" in html


def test_a_full_page_keeps_the_pictures_of_the_worst_scans_and_says_so(cohort, monkeypatch):
    sizes = [p.stat().st_size for p in cohort[1].glob("*/*.webp")]
    monkeypatch.setattr(module, "MOST_BYTES", 3 * max(sizes) + 10)
    html = write(cohort)
    with_picture = [card for card in html.split("<article")[1:] if "<img" in card.split("</article>")[0]]
    assert len(with_picture) == 3
    assert [scan for card in with_picture for scan in scans_of("<article" + card)][:2] == [BAD, NOISY]
    assert "8 scans have no picture here" in html


def test_few_scans_are_said_to_be_too_few(cohort):
    few = outliers.assess(cohort[0].head(4).drop(columns=["flagged", "kept", "worst_metric", "worst_z"]), SETTINGS)
    assert "nothing can be said of outliers" in write((few, cohort[1]))
    assert "nothing can be said of outliers" not in write(cohort)
    assert "flagged by chance" in write(cohort)
    many = pd.concat([cohort[0]] * 3, ignore_index=True)
    assert "flagged by chance" not in write((many, cohort[1]))


@pytest.fixture
def open_page(open_file, cohort, tmp_path):
    """Opens the page of the cohort."""

    def open_it(**options):
        path = tmp_path / "alpha.html"
        path.write_text(write(cohort), encoding="utf-8")
        return open_file(path, **options)

    return open_it


def shown(page):
    return page.eval_on_selector_all("article", "cards => cards.filter(c => !c.hidden).map(c => c.dataset.scan)")


def current(page):
    return page.eval_on_selector_all("article.current", "cards => cards.map(c => c.dataset.scan)")


@pytest.mark.browser
def test_search_filter_and_order(open_page):
    page = open_page()
    assert shown(page)[:3] == [BAD, NOISY, BROKEN]
    page.fill("#search", "SES-A")
    assert shown(page) == [NOISY]
    assert current(page) == [NOISY]
    page.fill("#search", "under the limit")
    assert shown(page) == [BAD]
    page.fill("#search", "")
    for choice, scans in (("flagged", [BAD, NOISY]), ("failed", [BROKEN]), ("dropped", [BAD])):
        page.select_option("#show", choice)
        assert shown(page) == scans
        assert page.inner_text("#count") == f"{len(scans)} of 12 scans"
    page.select_option("#show", label="coefficient of joint variation")
    assert shown(page) == [NOISY]
    page.select_option("#show", "all")
    page.select_option("#order", "name")
    assert shown(page) == sorted(shown(page))
    page.select_option("#order", label="coefficient of joint variation")
    assert shown(page)[0] == NOISY
    assert shown(page)[-1] == BROKEN
    assert all(url.startswith(("file:", "data:")) for url in page.complaints), page.complaints


@pytest.mark.browser
def test_keys_move_mark_search_and_explain(open_page):
    page = open_page()
    press = page.keyboard.press
    assert current(page) == [BAD]
    press("j")
    assert current(page) == [NOISY]
    assert page.evaluate("document.activeElement.dataset.scan") == NOISY
    press("f")
    press("ArrowDown")
    press("ArrowDown")
    press("f")
    third = current(page)[0]
    press("f")  # and back
    press("k")
    press("ArrowUp")
    press("k")
    press("k")  # nothing is before the first
    assert current(page) == [BAD]
    press("f")
    press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("jf")  # letters, not commands
    assert page.input_value("#search") == "jf"
    assert shown(page) == []
    page.fill("#search", "")
    press("Escape")
    press("?")
    assert page.is_visible("#help")
    press("Escape")
    assert not page.is_visible("#help")
    excluded = yaml.safe_load(page.inner_text("#snippet"))
    assert excluded == {"cohorts": {"alpha": {"exclude": ["sub-99", NOISY, BAD]}}}
    assert third not in excluded["cohorts"]["alpha"]["exclude"]
    assert page.inner_text("#marks") == "2"
    page.select_option("#show", "marked")
    assert set(shown(page)) == {BAD, NOISY}
    page.click("#clear")
    assert yaml.safe_load(page.inner_text("#snippet")) == {"cohorts": {"alpha": {"exclude": ["sub-99"]}}}


@pytest.mark.browser
def test_the_snippet_is_copied(open_page):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.click(f'article[data-scan="{BAD}"] .mark')
    assert page.get_attribute(f'article[data-scan="{BAD}"] .mark', "aria-pressed") == "true"
    page.click("#copy")
    page.wait_for_function("document.getElementById('copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#snippet")


@pytest.mark.browser
def test_strips_mark_the_current_scan_and_order_by_their_metric(open_page):
    page = open_page()
    strip = page.locator("#strips button", has_text="coefficient of joint variation")
    dots = strip.locator("path.dots").get_attribute("d")
    assert dots.count("M") == 11
    page.keyboard.press("j")
    assert strip.locator(".now").inner_text() == "0.95"
    farthest = max(float(x) for x in re.findall(r"M([\d.]+)", dots))
    assert float(re.findall(r"M([\d.]+)", strip.locator("path.here").get_attribute("d"))[0]) == farthest
    page.keyboard.press("j")  # the failed scan has no value
    assert strip.locator("path.here").count() == 0
    strip.click()
    assert shown(page)[0] == NOISY


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_are_decoded_text_is_legible_and_nothing_overflows(open_page, scheme):
    page = open_page(color_scheme=scheme)
    assert (
        page.evaluate("document.querySelector('img').decode().then(() => document.querySelector('img').naturalWidth)")
        == 952
    )
    for selector in ("h1", "article h2 .name", "dd", ".reason li", "dt"):
        assert contrast(page, selector) >= 4.5, selector  # WCAG 2.2 AA
    for width in (1400, 700, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
