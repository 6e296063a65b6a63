"""Field strength and scanner, from what a cohort's tables say and what DICOM headers say."""

import pandas as pd
import pytest

from fedbrain.cohorts.scanners import STRONGEST, describe_scanner, with_scanners
from fedbrain.tables import CONVERSIONS, SCANNERS, SCANS, concatenate, read_table, write_table


@pytest.mark.parametrize(
    ("fields", "strength", "scanner"),
    [
        ({"MagneticFieldStrength": 3, "Manufacturer": "SIEMENS", "ManufacturersModelName": "Prisma_fit"}, "3", "Siemens Prisma fit"),
        ({"MagneticFieldStrength": 15000, "Manufacturer": "GE MEDICAL SYSTEMS"}, "1.5", "GE"),
        ({"Manufacturer": "Philips Healthcare", "ManufacturersModelName": "Achieva  dStream"}, None, "Philips Achieva dStream"),
        ({"Manufacturer": "Toshiba MEC", "ManufacturersModelName": None}, None, "Toshiba MEC"),
        ({"MagneticFieldStrength": "n/a"}, None, None),
        ({"MagneticFieldStrength": 0, "Manufacturer": "Philips"}, None, "Philips"),
        ({"MagneticFieldStrength": 63.87}, None, None),  # MHz of the resonance at 1.5 T
        ({"MagneticFieldStrength": 1e7}, None, None),
        ({"MagneticFieldStrength": float("nan")}, None, None),
        ({"MagneticFieldStrength": -1.5}, None, None),
    ],
)  # fmt: skip
def test_fields_of_sidecars_as_makers_write_them(fields, strength, scanner):
    assert describe_scanner(fields) == {"field_strength": strength, "scanner": scanner}


def test_the_strongest_field_is_that_of_the_schema(scans_schema):
    assert scans_schema["properties"]["field_strength"]["maximum"] == STRONGEST


def test_tables_come_first_and_headers_fill_what_they_leave_open(tmp_path):
    scans = pd.DataFrame({"scan": ["a", "b", "c"]}).reindex(columns=list(SCANS)).astype(SCANS)
    known = pd.DataFrame({"scan": ["c", "a", "b"], "field_strength": [None, 1.5, None], "scanner": [None, None, "GE"]})
    read = pd.DataFrame({"scan": ["b", "a"], "field_strength": [3.0, 3.0], "scanner": ["Siemens", "Siemens"]})
    write_table(known, tmp_path / "scanners.tsv")
    write_table(read.reindex(columns=list(CONVERSIONS)), tmp_path / "0.tsv")
    known = read_table(tmp_path / "scanners.tsv", SCANNERS)
    joined = with_scanners(scans, known, concatenate([tmp_path / "0.tsv"], CONVERSIONS))
    assert joined["field_strength"].fillna(-1).tolist() == [1.5, 3, -1]
    assert joined["scanner"].fillna("-").tolist() == ["Siemens", "GE", "-"]
    alone = with_scanners(scans, known, concatenate([], CONVERSIONS))
    assert alone["field_strength"].fillna(-1).tolist() == [1.5, -1, -1]
