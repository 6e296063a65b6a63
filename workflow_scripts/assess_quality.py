"""Flags the scans of one cohort that stand out."""

from fedbrain.imaging.outliers import assess, read_shards
from fedbrain.logs import log_to
from fedbrain.tables import write_table

log_to(snakemake.log[0])
settings = {key: snakemake.params[key] for key in ("outlier_z", "limits", "drop")}
table = assess(read_shards(snakemake.input.volumes), settings)
write_table(table, snakemake.output.table)
sound = table[table["status"] == "ok"]
print(
    f"{len(table)} scans: {len(table) - len(sound)} failed, {int(table['flagged'].sum())} flagged, "
    f"{int((sound['kept'] == 0).sum())} dropped"
)
