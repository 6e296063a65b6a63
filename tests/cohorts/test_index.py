"""The index changes when, and only when, a scan's content or row does."""

import hashlib
import os
from pathlib import Path

import pytest

from fedbrain.cohorts import index
from fedbrain.study.config import checked
from fedbrain.tables import MANIFEST, VOLUMES, read_table, write_table


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
            nifti=tmp_path / "nifti",
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
        write_table(table.reindex(columns=list(VOLUMES)), folder / "volumes" / "a" / path.name)


def test_a_second_refresh_writes_nothing(study):
    first = study()
    before = manifests(study.folder)
    assert study() == first
    assert manifests(study.folder) == before
    assert sum(first["a"]["shards"].values()) == 8
    assert index.read_index(study.folder / "index") == first


def test_a_start_asks_the_disk_twice_about_each_scan(study, monkeypatch):
    original, asked = os.stat, []

    def counted(path, *arguments, **options):
        asked.append(str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", counted)
    study()
    assert [asked.count(str(study.folder / f"s{n}.nii.gz")) for n in range(8)] == [2] * 8


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


def test_an_edited_mask_makes_its_scan_new_and_a_touched_one_does_not(study, config_schema, scans_schema, monkeypatch):
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
        folders["nifti"] = folder / "nifti"
        index.refresh(checked(config, config_schema), scans_schema, **folders)
        return read_table(folder / "index/a/shards/0.tsv", MANIFEST)["fingerprint"].tolist()

    first = prints("provided")
    os.utime(folder / "m0.nii.gz")
    assert prints("provided") == first
    (folder / "m0.nii.gz").write_bytes(b"Mask")
    second = prints("provided")
    assert second[0] != first[0]
    assert second[1] == first[1]

    def closed(path):
        raise PermissionError(13, "Permission denied", path)

    os.utime(folder / "m0.nii.gz", ns=(5, 5))
    with monkeypatch.context() as patch:
        patch.setattr(index, "sha256_of", closed)
        assert prints("provided")[0] not in (first[0], second[0])
    assert prints("provided") == second  # readable again: a permission changes no time stamp
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
    home, results = index.shard_of("p7", 3), study.folder / "results"
    assert index.left_over(full, results) == {}
    places = [
        *(f"volumes/a/{{}}{suffix}" for suffix in ("/x.nii.gz", ".tsv", "_intensity.tsv")),
        *("standardized/a/{}/x.nii.gz", "standardized/a/scale.json", "standardized/scale.json"),
        *("embeddings/e/output/a/{}.safetensors", "embeddings/e/output/a/{}.json"),
        *("quality/a.tsv", "quality/a.html", "derivatives/a/README", "cohorts/a/scans.tsv", "cohorts/splits.tsv"),
    ]
    for shard in full["a"]["shards"]:
        for place in places:
            path = results / place.format(shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert index.left_over(full, results) == {}
    less = study([n for n in range(8) if index.shard_of(f"p{n}", 3) != home])
    assert index.left_over(less, results) == {
        str(results / "embeddings/e/output/a"): [f"{home}.json", f"{home}.safetensors"],
        str(results / "standardized/a"): [f"{home}"],
        str(results / "volumes/a"): [f"{home}", f"{home}.tsv", f"{home}_intensity.tsv"],
    }
    assert index.left_over({"b": less["a"]}, results) == {
        str(results / "cohorts"): ["a"],
        str(results / "derivatives"): ["a"],
        str(results / "embeddings/e/output"): ["a"],
        str(results / "quality"): ["a.html", "a.tsv"],
        str(results / "standardized"): ["a"],
        str(results / "volumes"): ["a"],
    }


def test_scans_converted_from_dicom_are_named_where_their_folders_left(tmp_path):
    for name in ("a/0/sub-x_T1w.nii.gz", "a/0.tsv", "a/1/sub-y_T1w.nii.gz", "a/1.tsv", "b/0.tsv"):
        path = tmp_path / "nifti" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    shards = {"shards": {"0": 4, "1": 4}}
    some = {"a": shards | {"dicom": {"1": 2}}, "b": shards | {"dicom": {}}}
    assert index.left_over(some, tmp_path) == {
        str(tmp_path / "nifti"): ["b"],
        str(tmp_path / "nifti/a"): ["0", "0.tsv"],
    }


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
