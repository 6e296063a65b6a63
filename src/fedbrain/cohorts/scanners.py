"""Field strength and scanner: from BIDS sidecars, scan tables and DICOM headers."""

from collections.abc import Mapping

import pandas as pd

STRONGEST = 20  # T; the schema of scan tables has the same


def describe_scanner(facts: Mapping) -> dict:
    """``field_strength`` (T, as text) and ``scanner`` (maker and model) from the fields of a BIDS sidecar.

    A field strength that no magnet has (0, or one in another unit) is missing: it describes a scan and decides nothing about it.
    """
    field = facts.get("MagneticFieldStrength")
    if isinstance(field, int | float) and field > 100:  # some scanners write gauss
        field /= 10_000
    known = isinstance(field, int | float) and 0 < field <= STRONGEST
    words = [str(facts.get(key) or "").replace("_", " ").split() for key in ("Manufacturer", "ManufacturersModelName")]
    maker = {"siemens": "Siemens", "philips": "Philips", "ge": "GE"}.get(
        " ".join(words[0][:1]).lower(), " ".join(words[0])
    )
    return {
        "field_strength": f"{field:g}" if known else None,
        "scanner": " ".join([maker, *words[1]]).strip() or None,
    }


def with_scanners(scans: pd.DataFrame, known: pd.DataFrame, conversions: pd.DataFrame) -> pd.DataFrame:
    """The scans with the columns field_strength and scanner.

    scans: tables.SCANS; known: tables.SCANNERS, what the cohort's tables and sidecars say; conversions: tables.CONVERSIONS,
    what DICOM headers say, which counts where the others are silent.
    """
    columns = ["field_strength", "scanner"]
    known, read = (table.set_index("scan")[columns].reindex(scans["scan"]) for table in (known, conversions))
    return scans.assign(**{column: known[column].fillna(read[column]).array for column in columns})
