import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from small_clients import make_client

from fedbrain.errors import StudyError
from fedbrain.federated.data import assert_no_leakage, load_clients, pool_clients
from fedbrain.tables import DROPPED, SCANS, SPLITS, read_table, write_table


def splits(*rows):
    return pd.DataFrame(rows, columns=list(SPLITS)).astype(SPLITS)


def write_scans(path, rows):
    """``rows``: (subject, session or None, label)."""
    table = pd.DataFrame(rows, columns=["subject", "session", "label"])
    table["scan"] = [
        f"sub-{subject}" + (f"_ses-{session}" if session else "")
        for subject, session in zip(table.subject, table.session)
    ]
    write_table(table.reindex(columns=list(SCANS)).astype(SCANS), path)
    return list(table["scan"])


def write_shard(path, scans, values, *, weights="random", encoder="abc"):
    tensor = torch.tensor(values, dtype=torch.float16).view(-1, 1, 1, 1, 1).expand(-1, 384, 8, 8, 8).contiguous()
    metadata = {"scans": json.dumps(scans), "keys": json.dumps([f"key of {scan}" for scan in scans])}
    metadata |= {"weights": weights, "encoder": encoder, "cut": "output"}
    save_file({"embeddings": tensor}, path, metadata=metadata)
    return path


@pytest.fixture
def study(tmp_path):
    """One cohort, five scans of four subjects in two shards; a fifth subject has no embedding."""
    rows = [("03", "b", 1), ("03", "a", 1), ("01", None, 0), ("02", None, 0), ("04", None, 1), ("05", None, 0)]
    scans = write_scans(tmp_path / "scans.tsv", rows)
    table = splits(
        ("x", "01", "x/01", 0, "test"),
        ("x", "02", "x/02", 0, "train"),
        ("x", "03", "x/03", 1, "train"),
        ("x", "04", "x/04", 1, "validation"),
        ("x", "05", "x/05", 0, "train"),
    )
    write_table(table, tmp_path / "splits.tsv")
    shards = [
        write_shard(tmp_path / "0.safetensors", [scans[0], scans[2]], [3.5, 1]),
        write_shard(tmp_path / "1.safetensors", [scans[4], scans[1], scans[3]], [4, 3, 2]),
    ]
    return {"shards": shards, "scans": tmp_path / "scans.tsv", "splits": tmp_path / "splits.tsv", "folder": tmp_path}


def load(study, shards=None):
    return load_clients({"x": shards or study["shards"]}, {"x": study["scans"]}, study["splits"])["x"]


def read(samples):
    """All of a side's inputs, as training would read them."""
    return samples.x[torch.arange(len(samples))]


def test_every_scan_on_its_side_with_its_own_embedding(study):
    client = load(study)
    assert client.train.scans == ("sub-02", "sub-03_ses-a", "sub-03_ses-b")
    assert client.train.subjects == ("02", "03", "03")
    assert client.train.sessions == (None, "a", "b")
    assert read(client.train)[:, 0, 0, 0, 0].tolist() == [2, 3, 3.5]
    assert client.train.y.tolist() == [0, 1, 1]
    assert client.train.x.dtype == torch.float16
    assert read(client.train).shape == (3, 384, 8, 8, 8)
    assert read(client.validation)[:, 5, 1, 2, 3].tolist() == [4]
    assert read(client.test)[:, 0, 0, 0, 0].tolist() == [1]
    assert client.absent == 1
    assert client.origin == {"encoder": "abc", "weights": "random", "cut": "output"}


def test_the_order_of_shards_does_not_matter(study):
    a, b = load(study), load(study, study["shards"][::-1])
    assert torch.equal(read(a.train), read(b.train))
    assert a.train.scans == b.train.scans
    assert a.fingerprint == b.fingerprint


def test_shards_without_scans_change_nothing(study):
    empty = write_shard(study["folder"] / "2.safetensors", [], [])
    a, b = load(study), load(study, [empty, study["shards"][0], empty, study["shards"][1], empty])
    for side in ("train", "validation", "test"):
        assert torch.equal(read(getattr(a, side)), read(getattr(b, side)))


def test_inputs_are_read_from_the_file_and_not_held_in_memory(study):
    def anonymous():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))  # KiB

    scans = write_scans(study["scans"], [(f"{number:03d}", None, number % 2) for number in range(300)])
    write_table(splits(*((("x", scan[4:], scan, 0, "train")) for scan in scans)), study["splits"])
    shard = write_shard(study["folder"] / "big.safetensors", scans, [1.0] * 300)  # 118 MB
    before = anonymous()
    client = load(study, [shard])
    assert client.train.x[torch.tensor([7, 250])].shape == (2, 384, 8, 8, 8)
    assert anonymous() - before < 30_000


def test_shards_of_two_encoders_are_refused(study):
    scan = "sub-04"
    other = write_shard(study["folder"] / "2.safetensors", [scan], [4], weights="sam_med3d_turbo.pth 123")
    with pytest.raises(StudyError, match="different encoders or weights"):
        load(study, [study["shards"][0], other])


def test_an_embedding_that_nobody_knows_is_refused(study):
    other = write_shard(study["folder"] / "2.safetensors", ["sub-77"], [4])
    with pytest.raises(StudyError, match=r"cohort x: 1 scan\(s\) with an embedding are not in its scan table"):
        load(study, [other])


def test_a_cohort_without_any_embedding_is_told(study):
    empty = write_shard(study["folder"] / "2.safetensors", [], [])
    with pytest.raises(StudyError, match="cohort x: no scan has an embedding"):
        load(study, [empty])


def test_leakage_stops_the_job_before_anything_is_read(study):
    table = splits(("x", "01", "p1", 0, "test"), ("y", "aa", "p1", 0, "train"))
    write_table(table, study["splits"])
    with pytest.raises(StudyError, match="two sides"):
        load(study, ["no such file"])


@pytest.mark.parametrize(
    "rows",
    [
        [("x", "01", "p1", 0, "train"), ("y", "aa", "p1", 0, "test")],  # one person in two cohorts
        [("x", "01", "p1", 0, "train"), ("x", "02", "p1", 1, "validation")],  # one person, two subjects
        [("x", "01", None, 0, "train"), ("x", "01", None, 0, "test")],  # one subject twice
        [("x", "01", "p1", 0, "train"), ("x", "01", "p2", 0, "test")],
    ],
)
def test_a_person_on_two_sides_raises_without_an_id_in_the_message(rows):
    table = splits(("x", "99", "p9", 0, "train"), *rows)
    with pytest.raises(StudyError, match="lines 3, 4") as caught:
        assert_no_leakage(table)
    assert "p1" not in str(caught.value)
    assert "aa" not in str(caught.value)


def test_a_clean_split_passes():
    assert_no_leakage(
        splits(
            ("x", "01", "p1", 0, "train"),
            ("y", "01", None, 0, "test"),  # another cohort's 01 is another subject
            ("x", "02", None, 0, "test"),
            ("y", "07", "p1", 0, "train"),
        )
    )


def test_an_unknown_side_raises():
    with pytest.raises(StudyError, match="line 2: split must be one of"):
        assert_no_leakage(splits(("x", "01", "p1", 0, "valid")))


def test_pooling_keeps_every_scan_on_its_side():
    clients = [make_client("A", seed=1), make_client("B", train=5, seed=2)]
    pooled = pool_clients(clients)
    assert pooled.train.scans == clients[0].train.scans + clients[1].train.scans
    assert torch.equal(read(pooled.test), torch.cat([clients[0].test.x, clients[1].test.x]))
    assert len(pooled.validation) == 12


def test_dropped_scans_take_no_part_though_they_have_an_embedding(study):
    # The split no longer knows subject 04, all of whose scans are dropped; of 03 one visit stays.
    table = read_table(study["splits"], SPLITS)
    write_table(table[table["subject"] != "04"], study["splits"])
    rows = [("x", "sub-04", "cjv"), ("x", "sub-03_ses-a", "cjv"), ("another", "sub-02", "cjv")]
    write_table(pd.DataFrame(rows, columns=list(DROPPED)).astype(DROPPED), study["folder"] / "dropped.tsv")
    arguments = ({"x": study["shards"]}, {"x": study["scans"]}, study["splits"])
    client = load_clients(*arguments, dropped=study["folder"] / "dropped.tsv")["x"]
    assert client.train.scans == ("sub-02", "sub-03_ses-b")
    assert read(client.train)[:, 0, 0, 0, 0].tolist() == [2, 3.5]
    assert client.test.scans == ("sub-01",)
    assert len(client.validation) == 0
    assert client.absent == 1  # the one that has no embedding
    with pytest.raises(StudyError, match="1 scan.* not in the split"):
        load_clients(*arguments)


def test_a_run_is_not_taken_up_again_where_other_scans_are_dropped(study):
    arguments = ({"x": study["shards"]}, {"x": study["scans"]}, study["splits"])
    prints = [load_clients(*arguments)["x"].fingerprint]
    for dropped in ([], [("x", "sub-03_ses-a", "cjv")]):
        write_table(pd.DataFrame(dropped, columns=list(DROPPED)).astype(DROPPED), study["folder"] / "dropped.tsv")
        prints.append(load_clients(*arguments, dropped=study["folder"] / "dropped.tsv")["x"].fingerprint)
    assert prints[0] == prints[1] != prints[2]
