"""Fixtures that several areas share."""

from pathlib import Path

import pytest
import yaml

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
