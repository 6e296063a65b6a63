"""Embeddings of a shard, with a small stand-in for the encoder whose output can be computed by hand."""

import json

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fedbrain.errors import StudyError
from fedbrain.imaging.layout import volume_path
from fedbrain.models.embeddings import embed_shard, encoder_digest, read_embeddings
from fedbrain.registry import REGISTRY

CALLS = {"loaded": 0, "scans": 0}


class TinyEncoder(nn.Module):
    """Channel c holds (c + seed) times the mean of each 16^3 patch."""

    def __init__(self, seed):
        super().__init__()
        self.register_buffer("factors", (torch.arange(384.0) + seed).view(1, -1, 1, 1, 1))

    def forward(self, x):
        CALLS["scans"] += len(x)
        return self.factors * nn.functional.avg_pool3d(x, 16)

    def tokens(self, x, upto):
        CALLS["scans"] += len(x)
        return nn.functional.avg_pool3d(x, 16).flatten(2).transpose(1, 2) * torch.tensor([1.0, upto])


def tiny_encoder(path, *, seed=0):
    CALLS["loaded"] += 1
    return TinyEncoder(seed)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(REGISTRY["encoder"], "tiny", f"{__name__}:tiny_encoder")
    CALLS.update(loaded=0, scans=0)


def write_volume(folder, scan, values, shape=(128, 128, 128)):
    path = volume_path(folder, scan)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.broadcast_to(np.float32(values), shape), np.diag([1.5, 1.5, 1.5, 1.0])), path)


@pytest.fixture
def folder(tmp_path):
    for scan, value in (("sub-c", 3.0), ("sub-a", 1.0), ("sub-b", 2.0)):
        write_volume(tmp_path / "0", scan, value)
    return tmp_path / "0"


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "scan": ["sub-c", "sub-x", "sub-a", "sub-b"],
            "status": ["ok", "failed", "ok", "ok"],
            "key": ["k3", pd.NA, "k1", "k2"],
        }
    ).astype("string")


def embed(table, folder, name="out.safetensors", **options):
    return embed_shard(table, folder, folder.parent / name, **({"encoder": "tiny", "batch_size": 2} | options))


def test_every_ok_scan_is_embedded_in_the_tables_order(table, folder):
    summary = embed(table, folder, seed=1)
    scans, embeddings, metadata = read_embeddings(folder.parent / "out.safetensors")
    assert scans == ["sub-c", "sub-a", "sub-b"]
    assert json.loads(metadata["keys"]) == ["k3", "k1", "k2"]
    assert metadata["weights"] == summary["weights"] == "random (seed 1)"
    assert metadata["encoder"] == summary["encoder"]
    assert (summary["scans"], CALLS["scans"]) == (3, 3)
    assert embeddings.dtype == torch.float16
    factors = torch.arange(384.0) + 1
    for embedding, value in zip(embeddings, (3.0, 1.0, 2.0), strict=True):
        torch.testing.assert_close(embedding, (factors * value).half().view(-1, 1, 1, 1).expand(384, 8, 8, 8))


def test_axes_of_the_volume_stay_in_place(table, folder):
    values = np.zeros((128, 128, 128))
    values[16:32, 48:64, 80:96] = 1.0  # patch (1, 3, 5)
    write_volume(folder, "sub-a", values)
    embed(table, folder)
    _, embeddings, _ = read_embeddings(folder.parent / "out.safetensors")
    assert embeddings[1, 100].nonzero().tolist() == [[1, 3, 5]]


def test_only_a_changed_scan_is_computed_again(table, folder):
    embed(table, folder)
    CALLS.update(loaded=0, scans=0)
    write_volume(folder, "sub-a", 10.0)
    write_volume(folder, "sub-b", 20.0)  # changed behind the key's back: nobody reads it
    table.loc[table["scan"] == "sub-a", "key"] = "new"
    embed(table, folder)
    _, embeddings, metadata = read_embeddings(folder.parent / "out.safetensors")
    assert CALLS == {"loaded": 1, "scans": 1}
    assert embeddings[:, 1, 0, 0, 0].tolist() == [3.0, 10.0, 2.0]
    assert json.loads(metadata["keys"]) == ["k3", "new", "k2"]


def test_nothing_to_compute_loads_no_encoder(table, folder):
    embed(table, folder)
    CALLS.update(loaded=0, scans=0)
    embed(table.iloc[::-1], folder)  # another order: rows move with their scans
    scans, embeddings, _ = read_embeddings(folder.parent / "out.safetensors")
    assert CALLS == {"loaded": 0, "scans": 0}
    assert scans == ["sub-b", "sub-a", "sub-c"]
    assert embeddings[:, 1, 0, 0, 0].tolist() == [2.0, 1.0, 3.0]


@pytest.mark.parametrize("change", [{"seed": 5}, {"previous": False}])
def test_another_encoder_keeps_nothing(table, folder, change):
    embed(table, folder)
    CALLS.update(scans=0)
    embed(table, folder, **change)
    assert CALLS["scans"] == 3


def test_the_summary_is_that_of_the_file_and_not_of_how_it_came_about(table, folder):
    assert embed(table, folder) == embed(table, folder)  # all computed, all kept: what comes after need not run again


@pytest.mark.parametrize("cut", ["output", "block1", "volume"])
def test_a_file_is_what_the_library_would_have_written(cut, table, folder):
    from safetensors.torch import load_file, save_file

    embed(table, folder, cut=cut)
    path = folder.parent / "out.safetensors"
    _, embeddings, metadata = read_embeddings(path)
    save_file({"embeddings": embeddings}, folder.parent / "theirs.safetensors", metadata)
    assert torch.equal(load_file(path)["embeddings"], load_file(folder.parent / "theirs.safetensors")["embeddings"])
    assert path.stat().st_size == (folder.parent / "theirs.safetensors").stat().st_size
    shape, kind = {
        "output": ((384, 8, 8, 8), torch.float16),
        "block1": ((512, 2), torch.float32),
        "volume": ((1, 128, 128, 128), torch.float32),
    }[cut]
    assert (embeddings.shape, embeddings.dtype) == ((3, *shape), kind)
    assert metadata["cut"] == cut
    if cut == "volume":
        assert (CALLS["loaded"], metadata["weights"]) == (0, "none")
        assert embeddings[:, 0, 5, 6, 7].tolist() == [3.0, 1.0, 2.0]


def test_a_damaged_file_of_an_earlier_run_is_replaced(table, folder):
    expected = embed(table, folder)["sha256"]
    output = folder.parent / "out.safetensors"
    output.write_bytes(output.read_bytes()[:100])
    assert embed(table, folder)["sha256"] == expected


def test_the_bytes_do_not_depend_on_the_run(table, folder):
    """Metadata has four keys that the safetensors library writes in random order."""
    digests = {embed(table, folder, f"{i}.safetensors", previous=False)["sha256"] for i in range(6)}
    assert len(digests) == 1


def test_a_shard_without_a_good_scan_is_an_empty_file(table, folder):
    table["status"] = "failed"
    assert embed(table, folder)["scans"] == 0
    scans, embeddings, metadata = read_embeddings(folder.parent / "out.safetensors")
    assert (scans, embeddings.shape, metadata["keys"]) == ([], (0,), "[]")
    assert CALLS["loaded"] == 0


def zeros(folder):
    write_volume(folder, "sub-a", 0.0, shape=(128, 128, 64))


def infinite(folder):
    write_volume(folder, "sub-a", np.inf)


def large(folder):
    write_volume(folder, "sub-a", 1000.0)


def missing(folder):
    volume_path(folder, "sub-a").unlink()


def damaged(folder):
    path = volume_path(folder, "sub-a")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (zeros, r"is \(128, 128, 64\) and not \(128, 128, 128\)"),
        (infinite, "not finite"),
        (large, "beyond float16"),
        (missing, "is missing"),
        (damaged, "cannot be read"),
    ],
)
def test_a_bad_volume_is_named_by_its_row_and_nothing_is_written(table, folder, spoil, said):
    spoil(folder)
    with pytest.raises(StudyError, match=said) as caught:
        embed(table, folder)
    assert "row 3 of the shard's table" in str(caught.value)
    assert "sub-a" not in str(caught.value)
    assert sorted(folder.parent.iterdir()) == [folder]


def test_the_digest_tells_encoders_weights_and_precision_apart():
    digests = [
        encoder_digest("tiny", "random (seed 0)"),
        encoder_digest("sam_med3d", "random (seed 0)"),
        encoder_digest("sam_med3d", "random (seed 1)"),
        encoder_digest("sam_med3d", "random (seed 1)", precision="bfloat16"),
        encoder_digest("sam_med3d", "random (seed 1)", cut="block10"),
        encoder_digest("sam_med3d", "none", cut="volume"),
    ]
    assert len(set(digests)) == 6
    assert digests[-1] == encoder_digest("tiny", "none", cut="volume")  # volumes are no encoder's
    assert digests[1] == encoder_digest("sam_med3d", "random (seed 0)")


def test_what_is_no_file_of_embeddings_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    for name in ("a.safetensors", "b.safetensors"):
        with pytest.raises(StudyError, match=rf"{name}: not a readable file of embeddings"):
            read_embeddings(tmp_path / name)
