"""Quality control in a whole study: what is shown, what a threshold drops, and what runs again for it."""

import re
import shutil
from collections import Counter

import pandas as pd
import pytest
import yaml

from fedbrain.imaging import layout
from fedbrain.imaging.outliers import METRICS
from fedbrain.tables import DROPPED, QUALITY, SPLITS, read_table

COHORTS = ("alpha", "beta", "gamma")
SHOWN_AGAIN = Counter(assess_quality=3, quality_page=3, study_page=1)


@pytest.fixture
def copy(study, tmp_path):
    return study.copy(tmp_path / "copy")


def assessed(study, cohort):
    return read_table(study.folder / f"results/quality/{cohort}.tsv", QUALITY)


def set_quality(study, **settings):
    config = yaml.safe_load((study.folder / "config.yaml").read_text())
    config["quality"] = settings
    study.write_config(config)


def limits_on_one_scan(study):
    """Two limits on one metric, each of which one scan of alpha alone does not keep; and that scan's row."""
    tables = {cohort: assessed(study, cohort) for cohort in COHORTS}
    for name in METRICS:
        values = pd.concat([table.set_index("scan")[name].rename(cohort) for cohort, table in tables.items()]).dropna()
        lowest, next_one = values.nsmallest(2)
        scan = values.idxmin()
        if scan in set(tables["alpha"]["scan"]) and next_one - lowest > 1e-4:
            row = tables["alpha"].set_index("scan", drop=False).loc[scan]
            return [{name: {"min": round(float(lowest + f * (next_one - lowest)), 9)}} for f in (0.3, 0.7)], row
    raise AssertionError("no metric is lowest in alpha")


def test_every_scan_is_in_the_table_and_on_the_page_of_its_cohort(study):
    for cohort in COHORTS:
        scans = pd.read_csv(study.folder / f"results/cohorts/{cohort}/scans.tsv", sep="\t", dtype=str)
        table = assessed(study, cohort)
        assert sorted(table["scan"]) == sorted(scans["scan"])
        page = (study.folder / f"results/quality/{cohort}.html").read_text(encoding="utf-8")
        assert sorted(re.findall(r' data-scan="([^"]*)"', page)) == sorted(scans["scan"])
        ok = table[table["status"] == "ok"]
        assert page.count('src="data:image/webp;base64,') == len(ok)
        # Phantoms are sound: every metric is there, but what needs a header that says two things.
        assert ok[[name for name in METRICS if name != "header_conflict"]].notna().all().all()
        for row in table.itertuples():
            folder = study.folder / f"results/volumes/{cohort}/{row.shard}"
            assert layout.snapshot_path(folder, row.scan).exists() == (row.status == "ok")
    broken = assessed(study, "alpha").set_index("scan").loc["sub-broken"]
    assert (broken["status"], broken["kept"], broken["flagged"]) == ("failed", 0, 0)
    assert broken["reason"]
    assert read_table(study.folder / "results/cohorts/dropped.tsv", DROPPED).empty


def test_another_threshold_is_shown_and_preprocesses_embeds_and_trains_nothing(copy):
    set_quality(copy, outlier_z=2.5)
    assert copy.planned() == SHOWN_AGAIN
    # What would be dropped but is not there changes nothing either.
    set_quality(copy, drop="limits", limits={"mask_dice": {"min": 0.1}})
    assert copy.planned() == SHOWN_AGAIN
    copy.snakemake("--until", "quality_page")
    assert copy.planned() == Counter(study_page=1)


def test_a_dropped_scan_takes_part_in_nothing_and_the_same_scans_by_another_threshold_change_nothing(copy):
    (first, second), worst = limits_on_one_scan(copy)
    set_quality(copy, drop="limits", limits=first)
    planned = copy.planned()
    assert {"assess_quality", "split_subjects", "train_cell", "evaluate_cells"} <= set(planned)
    assert not {"make_phantoms", "preprocess_shard", "embed_shard"} & set(planned)
    run = "results/runs/linear/frozen/local/seed-0/predictions.tsv"
    copy.snakemake(run)
    dropped = read_table(copy.folder / "results/cohorts/dropped.tsv", DROPPED)
    assert dropped[["cohort", "scan"]].to_numpy().tolist() == [["alpha", worst["scan"]]]
    assert "is under the limit" in dropped["reason"][0]
    sound = assessed(copy, "alpha").query("status == 'ok'")
    others = sound[(sound["subject"] == worst["subject"]) & (sound["scan"] != worst["scan"])]
    splits = read_table(copy.folder / "results/cohorts/splits.tsv", SPLITS).query("cohort == 'alpha'")
    assert (worst["subject"] in set(splits["subject"])) == (len(others) > 0)
    set_quality(copy, drop="limits", limits=second)
    assert copy.planned(run) == Counter()
    assert copy.planned()["assess_quality"] == 3
    set_quality(copy)
    assert {"split_subjects", "train_cell"} <= set(copy.planned(run))


def test_dropping_all_cases_of_a_cohort_stops_before_training_and_names_it(copy):
    table = assessed(copy, "beta")
    limit = float(table["mask_dice"].max()) + 0.001
    set_quality(copy, drop="limits", limits={"mask_dice": {"min": limit}})
    output = copy.snakemake("--until", "split_subjects", check=False)
    log = (copy.folder / "results/logs/split_subjects.log").read_text()
    assert re.search(r"cohort \w+: quality.drop leaves it without a", log + output)


@pytest.mark.browser
def test_the_pages_are_in_the_report_where_the_config_says_so_and_beside_it_otherwise(study, copy, tmp_path, browser):
    set_quality(copy, in_report=True)
    assert copy.planned() == Counter(study_page=1)
    copy.snakemake()
    page = browser.new_context(offline=True, viewport={"width": 1400, "height": 1000}).new_page()
    page.goto((study.folder / "results/report.html").as_uri())
    first = page.frame_locator("#study-page")
    first.get_by_role("heading", name="Small study").wait_for()
    assert page.get_by_text("Quality", exact=True).count() == 0
    with page.expect_popup() as opened:
        first.get_by_text("scans of alpha", exact=True).click()
    opened.value.wait_for_selector("article")
    assert "Quality of the scans: alpha" in opened.value.inner_text("h1")
    alone = tmp_path / "report.html"
    shutil.copyfile(copy.folder / "results/report.html", alone)
    page.goto(alone.as_uri())
    page.get_by_text("Quality", exact=True).first.click()
    rows = page.locator("table.table-auto tbody tr")
    rows.first.wait_for()
    assert [page.get_by_text(cohort, exact=True).count() > 0 for cohort in COHORTS] == [True] * 3  # a switch
    rows.first.locator("a").first.click()
    page.wait_for_timeout(500)
    frames = [frame for frame in page.frames if frame.query_selector("article")]
    assert frames, "the page opens within the report"
    assert frames[0].query_selector("#snippet").inner_text().startswith("cohorts:")
    page.context.close()
