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

    refresh.folder, refresh.scans_schema = tmp_path, scans_schema
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


def test_an_edited_mask_makes_its_scan_new_and_a_touched_one_does_not(study, config_schema, scans_schema):
    folder = study.folder
    (folder / "m0.nii.gz").write_bytes(b"mask")
    (folder / "scans.tsv").write_text(
        "subject\tpath\tmask\tdiagnosis\np0\ts0.nii.gz\tm0.nii.gz\tCN\np1\ts1.nii.gz\tn/a\tAD\n"
    )

    def prints(extractor):
        config = {
            "title": "t",
            "cohorts": {"a": {"table": str(folder / "scans.tsv")}},
            "labels": {"CN": 0, "AD": 1},
            "preprocessing": {"extractor": extractor},
            "encoder": {"weights": "random"},
            "grid": [{"heads": ["linear"], "aggregations": ["local"]}],
        }
        folders = {"root": folder / "index", "volumes": folder / "volumes", "phantoms": folder / "phantoms"}
        index.refresh(checked(config, config_schema), scans_schema, **folders)
        return read_table(folder / "index/a/shards/0.tsv", MANIFEST)["fingerprint"].tolist()

    first = prints("provided")
    os.utime(folder / "m0.nii.gz")
    assert prints("provided") == first
    (folder / "m0.nii.gz").write_bytes(b"Mask")
    second = prints("provided")
    assert second[0] != first[0]
    assert second[1] == first[1]
    (folder / "m0.nii.gz").unlink()  # of no interest to an extractor that finds the brain itself
    assert len(prints("deepbet")) == 2


def test_a_missing_file_of_a_scan_that_is_left_out_stops_nothing(study):
    study()
    table = study.folder / "scans.tsv"
    table.write_text(table.read_text() + "p9\tnever_fetched.nii.gz\tMCI\n")
    frame = index.intake.read_scan_table(table, study.scans_schema, cohort="a")
    scans, excluded = index.intake.select(frame, cohort="a", labels={"CN": 0, "AD": 1}, exclude=[])
    index.intake.check_files(scans, cohort="a")
    assert len(excluded) == 1


def test_what_the_study_no_longer_has_is_named(study):
    full = study()
    preprocessed(study.folder)
    assert index.left_over(full, study.folder / "volumes") == []
    home = index.shard_of("p7", 3)
    less = study([n for n in range(8) if index.shard_of(f"p{n}", 3) != home])
    assert index.left_over(less, study.folder / "volumes") == [study.folder / f"volumes/a/{home}.tsv"]


def test_a_large_files_digest_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    path, cache = tmp_path / "weights.pth", tmp_path / "weights.json"
    path.write_bytes(b"one")
    first = index.file_sha256(str(path), cache=cache)
    assert first == hashlib.sha256(b"one").hexdigest()
    monkeypatch.setattr(index, "sha256_of", None)  # reading it again would fail
    assert index.file_sha256(str(path), cache=cache) == first
    monkeypatch.undo()
    path.write_bytes(b"another")
    assert index.file_sha256(str(path), cache=cache) == hashlib.sha256(b"another").hexdigest()
    assert index.file_sha256("random", cache=cache) == "random"


def test_all_visits_of_a_subject_share_a_shard_and_shards_are_even():
    counts = [0] * 10
    for number in range(5000):
        counts[index.shard_of(f"S{number}", 10)] += 1
    assert min(counts) > 400
