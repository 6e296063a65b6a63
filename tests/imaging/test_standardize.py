import json
import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest

from fedbrain.errors import StudyError
from fedbrain.imaging import derivatives, histogram, layout, nyul, registration, standardize
from fedbrain.shard_folders import held
from fedbrain.tables import DROPPED, HISTOGRAM, SPLITS, VOLUMES

BALL = ((np.indices(registration.GRID_SHAPE) - 64) ** 2).sum(0) < 12**2


def write_scan(folder, scan, seed, gamma=1.0):
    """A ball of noise on a scanner's own scale, kept as preprocessing keeps a volume that waits for its scale."""
    rng = np.random.default_rng(seed)
    values = np.where(BALL, 300 * rng.beta(3, 2, BALL.shape) ** gamma, 0).astype(np.float32)
    step = {"name": "intensity", "parameters": {"method": "nyul", "landmarks": nyul.landmarks(values, BALL)}}
    before = histogram.packed(histogram.scan_histogram(values[BALL]))
    record = {
        "steps": [step],
        "seconds": 1.0,
        "key": f"raw {scan} {seed}",
        "method": {},
        "histograms": {"before": before},
    }
    folder.mkdir(parents=True, exist_ok=True)
    derivatives.write(folder, scan, values, BALL, record)
    row = {"scan": scan, "subject": scan[4:], "status": "ok", "key": record["key"], "reused": 0, "seconds": 1.0}
    return row | {"brain_volume_ml": 1200.0}


def table_of(rows):
    columns = [*VOLUMES, "brain_volume_ml"]
    return pd.DataFrame(rows, columns=columns).astype(VOLUMES | {"brain_volume_ml": "Float64"})


def splits_of(**sides):
    rows = [
        {"cohort": "c", "subject": subject, "person": subject, "label": 0, "split": side}
        for subject, side in sides.items()
    ]
    return pd.DataFrame(rows, columns=list(SPLITS)).astype(SPLITS)


NOTHING_DROPPED = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in DROPPED.items()})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "volumes"
    return folder, [write_scan(folder, f"sub-{name}", seed) for seed, name in enumerate("abcd")]


@pytest.fixture
def shard(made, tmp_path):
    """Four scans that are ok, one that failed, and who is on which side."""
    folder = shutil.copytree(made[0], tmp_path / "volumes")
    failed = {"scan": "sub-e", "subject": "e", "status": "failed", "reason": "no brain", "reused": 0, "seconds": 0.1}
    return folder, table_of([*made[1], failed]), splits_of(a="train", b="train", c="validation", d="test")


def fit(folder, table, splits, dropped=NOTHING_DROPPED):
    return standardize.fit_scale([(table, folder)], splits, dropped, cohort="c")


def test_the_scale_is_that_of_the_training_scans(shard):
    folder, table, splits = shard
    scale = fit(folder, table, splits)
    volumes = [nibabel.load(layout.volume_path(folder, f"sub-{name}")).get_fdata(dtype=np.float32) for name in "ab"]
    expected = nyul.mean_landmarks([nyul.landmarks(values, BALL) for values in volumes])
    np.testing.assert_allclose(scale["scale"], expected)
    assert (scale["scans"], scale["subjects"], scale["cohorts"]) == (2, 2, ["c"])


def test_no_validation_or_test_scan_has_any_influence_on_the_scale(shard):
    folder, table, splits = shard
    before = json.dumps(fit(folder, table, splits))
    for name in "cd":
        write_scan(folder, f"sub-{name}", seed=99, gamma=3.0)
    assert json.dumps(fit(folder, table, splits)) == before
    for name in "cd":  # their records are not even opened
        layout.sidecar_path(folder, f"sub-{name}").unlink()
    assert json.dumps(fit(folder, table, splits)) == before
    write_scan(folder, "sub-a", seed=99, gamma=3.0)
    assert json.dumps(fit(folder, table, splits)) != before


def test_a_subject_of_another_cohort_with_the_same_id_and_a_dropped_scan_do_not_count(shard):
    folder, table, splits = shard
    foreign = splits_of(d="train").assign(cohort="other")
    splits = pd.concat([splits, foreign], ignore_index=True)
    dropped = pd.DataFrame(
        [{"cohort": "c", "scan": "sub-b", "reason": "far out"}, {"cohort": "other", "scan": "sub-a"}]
    )
    scale = fit(folder, table, splits, dropped.astype(DROPPED))
    assert scale["scans"] == 1


def test_standardized_volumes_are_laid_out_as_the_others_and_failed_rows_stay(shard, tmp_path):
    folder, table, splits = shard
    scale = fit(folder, table, splits)
    done, counts = standardize.standardize_shard(table, folder, tmp_path / "out", scale, cohort="c")
    assert list(done["status"]) == ["ok"] * 4 + ["failed"]
    assert done["reason"].iloc[4] == "no brain"
    assert list(done["brain_volume_ml"][:4]) == [1200.0] * 4
    assert (done["key"][:4] != table["key"][:4]).all()
    voxels = []
    for name in "abcd":
        values, mask = derivatives.read(folder, f"sub-{name}", "here")
        image = nibabel.load(layout.volume_path(tmp_path / "out", f"sub-{name}"))
        expected = nyul.normalized(values, mask, nyul.landmarks(values, mask), scale["scale"])
        np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), expected)
        np.testing.assert_array_equal(derivatives.read(tmp_path / "out", f"sub-{name}", "here")[1], mask)
        record = json.loads(layout.sidecar_path(tmp_path / "out", f"sub-{name}").read_text())
        assert [step["name"] for step in record["steps"]] == ["intensity", "standardization"]
        voxels.append(expected[mask])
    after = counts[counts["stage"] == "after"].drop(columns="stage").reset_index(drop=True)
    pd.testing.assert_frame_equal(after, histogram.scan_histogram(np.concatenate(voxels), 0.01))
    assert counts.loc[counts["stage"] == "before", "count"].sum() == 4 * BALL.sum()
    assert list(counts.columns) == list(HISTOGRAM)
    assert not layout.sidecar_path(tmp_path / "out", "sub-e").exists()


def test_only_a_changed_scan_is_made_anew_and_another_scale_makes_all_anew(shard, tmp_path):
    folder, table, splits = shard
    scale, out = fit(folder, table, splits), tmp_path / "out"
    first, counts = standardize.standardize_shard(table, folder, out, scale, cohort="c")
    again, same = standardize.standardize_shard(table, folder, out, scale | {"scans": 77}, cohort="c")
    assert list(again["reused"][:4]) == [1] * 4
    pd.testing.assert_frame_equal(same, counts)
    pd.testing.assert_frame_equal(again.drop(columns="reused"), first.drop(columns="reused"))
    changed = table_of([*table[:3].to_dict("records"), write_scan(folder, "sub-d", seed=50)])
    assert fit(folder, changed, splits) == scale
    third, _ = standardize.standardize_shard(changed, folder, out, scale, cohort="c")
    assert list(third["reused"]) == [1, 1, 1, 0]
    other = scale | {"scale": [number + 1 for number in scale["scale"]]}
    fourth, _ = standardize.standardize_shard(changed, folder, out, other, cohort="c")
    assert list(fourth["reused"]) == [0] * 4
    assert set(fourth["key"]).isdisjoint(third["key"])


def test_volumes_of_scans_that_failed_or_left_are_removed(shard, tmp_path):
    folder, table, splits = shard
    scale, out = fit(folder, table, splits), tmp_path / "out"
    standardize.standardize_shard(table, folder, out, scale, cohort="c")
    table.loc[0, ["status", "reason"]] = ["failed", "cut off"]
    standardize.standardize_shard(table.drop(index=1), folder, out, scale, cohort="c")
    assert sorted(path.name[:5] for path in out.iterdir()) == ["sub-c"] * 3 + ["sub-d"] * 3


def test_a_folder_that_is_worked_on_is_left_alone(shard, tmp_path):
    folder, table, splits = shard
    scale, out = fit(folder, table, splits), tmp_path / "out"
    with held(out), pytest.raises(StudyError, match="another process works on this shard"):
        standardize.standardize_shard(table, folder, out, scale, cohort="c")
    assert list(out.iterdir()) == []


def test_a_missing_volume_or_record_stops_the_job_and_names_the_row_not_the_subject(shard, tmp_path):
    folder, table, splits = shard
    scale = fit(folder, table, splits)
    whole = layout.volume_path(folder, "sub-b").read_bytes()
    broken = whole[:2000] + bytes([whole[2000] ^ 255]) + whole[2001:]
    for content in (b"no image", whole[: len(whole) // 2], broken, None):
        layout.volume_path(folder, "sub-b").unlink()
        if content is not None:
            layout.volume_path(folder, "sub-b").write_bytes(content)
        stops_at_b(folder, table, scale, tmp_path / "out")
    layout.sidecar_path(folder, "sub-a").unlink()
    with pytest.raises(StudyError, match="row 1 .*record is missing or damaged") as told:
        fit(folder, table, splits)
    assert "sub-a" not in str(told.value)


def stops_at_b(folder, table, scale, out):
    with pytest.raises(StudyError, match="row 2 of the shard's table is missing or damaged; delete the shard") as told:
        standardize.standardize_shard(table, folder, out, scale, cohort="c")
    assert "sub-b" not in str(told.value)


def test_a_cohort_without_training_scans_has_no_scale_of_its_own_and_may_use_the_shared_one(shard, tmp_path):
    folder, table, splits = shard
    none = fit(folder, table, splits_of(a="test", b="test", c="test", d="test"))
    assert none["scale"] is None
    with pytest.raises(StudyError, match="cohort c: no training scan .* shared"):
        standardize.standardize_shard(table, folder, tmp_path / "out", none, cohort="c")
    own = fit(folder, table, splits)
    shared = standardize.share_scale([none, own])
    assert shared == own
    done, _ = standardize.standardize_shard(table, folder, tmp_path / "out", shared, cohort="c")
    assert (done["status"] == "ok").sum() == 4
    with pytest.raises(StudyError, match="no cohort has training scans"):
        standardize.share_scale([none, none])


def test_what_clients_share_is_eleven_numbers_and_counts(shard):
    folder, table, splits = shard
    own = fit(folder, table, splits)
    assert set(own) == {"percentiles", "scale", "scans", "subjects", "cohorts"}
    assert len(own["scale"]) == len(own["percentiles"]) == 11
