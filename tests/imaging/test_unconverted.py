"""Scans whose DICOM folder gave no file: they keep their line, and their volume where the folder may not be read now."""

import pandas as pd
import pytest

from fedbrain.errors import StudyError
from fedbrain.imaging import layout, shard
from fedbrain.tables import MANIFEST

RECIPE = {"extractor": "template"}


def manifest(folder, *names):
    rows = [{"scan": f"sub-{name}", "subject": name, "path": str(folder / f"sub-{name}_T1w.nii.gz")} for name in names]
    return pd.DataFrame(rows).reindex(columns=list(MANIFEST)).astype(MANIFEST)


def test_a_scans_line_is_that_of_the_whole_manifest(tmp_path):
    scans = manifest(tmp_path, "a", "b", "c")
    with pytest.raises(StudyError, match="cohort c, line 4 of the shard's manifest: the file cannot be read now"):
        shard.preprocess_shard(scans, tmp_path / "0", RECIPE, cohort="c", unconverted={"sub-a", "sub-b"})


def test_the_volume_stays_as_long_as_the_file_of_an_earlier_conversion(tmp_path):
    scans, folder = manifest(tmp_path, "kept", "gone"), tmp_path / "0"
    folder.mkdir()
    for scan in scans["scan"]:
        layout.volume_path(folder, scan).write_bytes(b"volume")
    (tmp_path / "sub-kept_T1w.nii.gz").write_bytes(b"of a folder that may not be read now")
    table, histogram = shard.preprocess_shard(scans, folder, RECIPE, cohort="c", unconverted=set(scans["scan"]))
    assert len(table) == len(histogram) == 0
    assert list(folder.iterdir()) == [layout.volume_path(folder, "sub-kept")]
