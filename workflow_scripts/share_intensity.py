"""Averages the clients' standard scales of intensity, weighted by their training scans."""

import json
from pathlib import Path

from fedbrain.imaging.standardize import share_scale
from fedbrain.logs import log_to
from fedbrain.tables import write_text

log_to(snakemake.log[0])
scale = share_scale([json.loads(Path(path).read_text()) for path in snakemake.input.scales])
write_text(json.dumps(scale, indent=1) + "\n", snakemake.output.scale)
