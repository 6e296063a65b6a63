"""Scans that were not converted from DICOM, in the table of their shard's volumes."""

import pandas as pd

from fedbrain.tables import VOLUMES


def with_refused(volumes: pd.DataFrame, scans: pd.DataFrame, conversions: pd.DataFrame) -> pd.DataFrame:
    """The table of a shard's volumes with the scans that were not converted, as failed rows in the order of ``scans``."""
    failed = conversions.loc[conversions["status"] == "failed", ["scan", "status", "reason", "seconds"]]
    failed = failed.merge(scans[["scan", "subject", "session", "fingerprint"]], on="scan").assign(reused=0)
    if not len(failed):
        return volumes
    both = pd.concat([volumes, failed.reindex(columns=volumes.columns)], ignore_index=True)
    order = {scan: place for place, scan in enumerate(scans["scan"])}
    return both.sort_values("scan", key=lambda column: column.map(order), ignore_index=True).astype(VOLUMES)
