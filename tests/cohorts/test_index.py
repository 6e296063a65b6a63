"""The index changes when, and only when, a scan's content or row does."""

import hashlib
import os
from pathlib import Path

import pytest

from fedbrain.cohorts import index
from fedbrain.study.config import checked
from fedbrain.tables import MANIFEST, read_table, write_table


@pytest.fixture
def study(tmp_path, config_schema, scans_schema):
    for number in range(8):
        (tmp_path / f"s{number}.nii.gz").write_bytes(f"scan {number}".encode())

    def refresh(rows=range(8)):
        lines = [f"p{n}\ts{n}.nii.gz\t{'AD' if n % 2 else 'CN'}\n" for n in rows]
        (tmp_path / "scans.tsv").write_text("subject\tpath\tdiagnosis\n" + "".join(lines))
        config = {
            "title": "t",
            "cohorts": {"a": {"table": str(tmp_path / "scans.tsv"), "shards": 3}},
            "labels": {"CN": 0, "AD": 1},
            "encoder": {"weights": "random"},
            "grid": [{"heads": ["linear"], "aggregations": ["local"]}],
        }
        return index.refresh(
            checked(config, config_schema),
            scans_schema,
            root=tmp_path / "index",
            volumes=tmp_path / "volumes",
            phantoms=tmp_path / "phantoms",
        )

    refresh.folder = tmp_path
    return refresh


def manifests(folder):
    return {
        path.stem: (path.read_text(), path.stat().st_mtime_ns) for path in (folder / "index/a/shards").glob("*.tsv")
    }


def preprocessed(folder):
    """What preprocessing leaves behind: the content of each scan that it read."""
    for path in (folder / "index/a/shards").glob("*.tsv"):
        table = read_table(path, MANIFEST)
        contents = [Path(source).read_bytes() for source in table["path"]]
        table = table.assign(
            status="ok",
            reason=None,
            size=[len(content) for content in contents],
            mtime_ns=0,
            sha256=[hashlib.sha256(content).hexdigest() for content in contents],
            key="k",
            reused=0,
            seconds=1.0,
        )
        write_table(table, folder / "volumes" / "a" / path.name)


def test_a_second_refresh_writes_nothing(study):
    first = study()
    before = manifests(study.folder)
    assert study() == first
    assert manifests(study.folder) == before
    assert sum(first["a"]["shards"].values()) == 8
    assert index.read_index(study.folder / "index") == first


def test_touched_scans_keep_their_fingerprint_and_changed_ones_do_not(study):
    study()
    preprocessed(study.folder)
    before = manifests(study.folder)
    for number in range(8):
        os.utime(study.folder / f"s{number}.nii.gz")
    study()
    assert manifests(study.folder) == before
    (study.folder / "s3.nii.gz").write_bytes(b"scan X")  # the same size, another content
    study()
    after = manifests(study.folder)
    changed = [shard for shard in after if after[shard][0] != before[shard][0]]
    assert changed == [str(index.shard_of("p3", 3))]
    study()
    assert manifests(study.folder) == after


def test_a_new_scan_touches_one_shard_and_a_removed_one_leaves_no_empty_manifest(study):
    study(range(7))
    before = manifests(study.folder)
    study(range(8))
    after = manifests(study.folder)
    home = str(index.shard_of("p7", 3))
    assert [shard for shard in after if before.get(shard) != after[shard]] == [home]
    gone = [n for n in range(8) if index.shard_of(f"p{n}", 3) == int(home)]
    result = study([n for n in range(8) if n not in gone])
    assert home not in result["a"]["shards"]
    assert home not in manifests(study.folder)


def test_all_visits_of_a_subject_share_a_shard_and_shards_are_even():
    counts = [0] * 10
    for number in range(5000):
        counts[index.shard_of(f"S{number}", 10)] += 1
    assert min(counts) > 400
