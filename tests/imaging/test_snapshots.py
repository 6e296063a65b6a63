"""The picture shows what it is for: where the mask ends, where the scan ends, how the brain lies on the template."""

import io

import numpy as np
import pandas as pd
import pytest
from coarse import COARSE
from PIL import Image

from fedbrain.imaging import layout, snapshots
from fedbrain.imaging.shard import preprocess_shard
from fedbrain.tables import MANIFEST


def ball(shape, centre, radius, size=(1, 1, 1)):
    index = np.indices(shape).astype(float)
    away = [(index[axis] - centre[axis]) * size[axis] for axis in range(3)]
    return sum(a**2 for a in away) < radius**2


@pytest.fixture
def parts():
    """A head of 90 mm in 2 x 1.5 x 1 mm voxels with a brain of 70 mm, and a brain on the grid."""
    size = np.array([2.0, 1.5, 1.0])
    shape = (100, 130, 180)
    head = np.where(ball(shape, (50, 65, 90), 90, size), 60.0, 0) + np.where(
        ball(shape, (50, 65, 90), 70, size), 40.0, 0
    )
    template = ball((128,) * 3, (64, 64, 64), 50)
    return head.astype(np.float32), size, ball(shape, (50, 65, 90), 70, size), np.where(template, 1.0, 0), template


def draw(parts):
    image = Image.open(io.BytesIO(snapshots.snapshot(*parts)))
    assert image.format == "WEBP"
    return np.asarray(image.convert("RGB")).astype(int)


def tiles(picture):
    """(2, 7, 136, 136, 3): rows, slices."""
    return picture.reshape(2, snapshots.TILE, 7, snapshots.TILE, 3).transpose(0, 2, 1, 3, 4)


def outlined(tile, colour=snapshots.MASK_COLOUR):
    """Where a grey tile has the colour of an outline: orange is red without blue, the other is blue without red."""
    tint = tile[..., 0] - tile[..., 2]
    return tint > 45 if colour[0] > colour[2] else tint < -45


def extent(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


def test_size_and_weight(parts):
    assert draw(parts).shape == (272, 952, 3)
    noisy = parts[0] + np.random.default_rng(0).normal(0, 8, parts[0].shape).astype(np.float32)
    assert len(snapshots.snapshot(np.abs(noisy), *parts[1:])) < 60_000


def test_a_round_brain_is_outlined_round_whatever_the_voxels_are(parts):
    for tile in tiles(draw(parts))[0]:
        height, width = extent(outlined(tile))
        assert abs(height - width) <= 4
    middle = outlined(tiles(draw(parts))[0][1])
    # 140 mm of the 168 mm that a tile of 134 pixels holds
    assert extent(middle)[0] == pytest.approx(134 * 140 / 168, abs=4)


def test_a_mask_that_cuts_into_the_brain_is_seen_to(parts):
    head, size, brain, *aligned = parts
    cut = brain.copy()
    cut[:50] = False  # the left half
    whole, half = (outlined(tiles(draw([head, size, mask, *aligned]))[0][3]) for mask in (brain, cut))
    assert extent(half)[1] < 0.7 * extent(half)[0]
    assert extent(whole)[1] > 0.9 * extent(whole)[0]


def test_left_is_left_and_up_is_up(parts):
    head, size, brain, *aligned = parts
    marked = head.copy()
    marked[:45, :, 100:] += 100  # left, upper
    coronal = tiles(draw([marked, size, brain, *aligned]))[0][4].sum(-1)
    assert coronal[:60, :55].mean() > coronal[:60, 80:].mean() + 30
    assert coronal[:60, :55].mean() > coronal[75:, :55].mean() + 30


def test_what_lies_outside_the_scan_is_hatched_not_black(parts):
    head, size, brain, *aligned = parts
    cropped = [head[:, :, :110], size, brain[:, :, :110], *aligned]
    striped = [np.abs(tiles(draw(one))[0][3] - 120).max(-1) < 12 for one in (parts, cropped)]
    assert striped[1].sum() > 1.5 * striped[0].sum()
    assert striped[1].sum(axis=0).astype(bool).mean() > 0.9  # from one side to the other


def test_a_brain_that_lies_beside_the_template_is_seen_to(parts):
    *native, volume, template = parts
    inside = snapshots.TILE // 2, snapshots.TILE // 2
    for moved, bright in ((0, True), (60, False)):
        tile = tiles(draw([*native, np.roll(volume, moved, axis=0), template]))[1][1]
        assert (tile[inside].min() > 150) == bright
        height, width = extent(outlined(tile, snapshots.TEMPLATE_COLOUR))
        assert height == pytest.approx(width, abs=3)


@pytest.fixture
def small_scan(write_head, tmp_path):
    """One scan of a ball with its mask, as a shard's manifest, and the folder for what is made of it."""
    mask = write_head("mask.nii.gz", ball((24, 26, 28), (12, 13, 14), 9).astype(np.uint8))
    row = {"scan": "sub-1", "subject": "1", "path": str(write_head("a.nii.gz")), "mask": str(mask), "fingerprint": "f"}
    return pd.DataFrame([row]).reindex(columns=list(MANIFEST)).astype(MANIFEST), tmp_path / "out"


def preprocess(scans, folder, **changes):
    return preprocess_shard(scans, folder, COARSE | changes, cohort="c")[0]


def test_a_snapshot_lies_beside_its_volume_is_made_again_where_it_is_lost_and_goes_with_it(small_scan):
    scans, folder = small_scan
    assert list(preprocess(scans, folder)["reused"]) == [0]
    path = layout.snapshot_path(folder, "sub-1")
    first = path.read_bytes()
    assert Image.open(io.BytesIO(first)).size == (952, 272)
    assert list(preprocess(scans, folder)["reused"]) == [1]
    path.unlink()
    assert list(preprocess(scans, folder)["reused"]) == [0]
    assert path.read_bytes() == first
    path.write_bytes(first[:-7])  # half copied
    assert list(preprocess(scans, folder)["reused"]) == [0]
    assert path.read_bytes() == first
    with open(scans["path"][0], "wb") as file:
        file.write(b"not a scan")
    assert list(preprocess(scans, folder)["status"]) == ["failed"]
    assert [path.name for path in folder.iterdir()] == ["sub-1_space-MNI152NLin2009aSym_res-1p5_desc-failed_T1w.json"]


def test_the_snapshot_of_a_scan_that_left_the_shard_is_removed(small_scan):
    scans, folder = small_scan
    preprocess(scans, folder)
    preprocess(scans.assign(scan="sub-2"), folder)
    assert layout.snapshot_path(folder, "sub-2").exists()
    assert not layout.snapshot_path(folder, "sub-1").exists()
