"""Fixtures that several areas share."""

import shutil
from pathlib import Path

import pytest
import yaml

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--disable-quic", "--no-first-run"]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def config_schema() -> dict:
    return yaml.safe_load((ROOT / "rules/schemas/config.schema.yaml").read_text())


@pytest.fixture(scope="session")
def scans_schema() -> dict:
    return yaml.safe_load((ROOT / "rules/schemas/scans.schema.yaml").read_text())


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, one for all tests: playwright starts once in a process."""
    if CHROMIUM is None:
        pytest.skip("no Chromium (Debian: chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()
