import errno
import json
import os
import traceback
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from coarse import COARSE

from fedbrain.errors import StudyError
from fedbrain.imaging import derivatives, histogram, intensity, layout, nyul, quality, registration, shard
from fedbrain.imaging.faults import is_of_machine
from fedbrain.imaging.reading import ScanFailure
from fedbrain.tables import HISTOGRAM, MANIFEST, VOLUMES


def manifest(paths, mask=None):
    rows = [
        {
            "scan": f"sub-{n}",
            "subject": str(n),
            "session": None,
            "path": str(path),
            "mask": mask,
            "fingerprint": f"f{n}",
        }
        for n, path in paths.items()
    ]
    return pd.DataFrame(rows, columns=list(MANIFEST)).astype(MANIFEST)


@pytest.fixture
def heads(write_head):
    """Two readable scans of 24 x 26 x 28 voxels with a mask for both, and a third that is no NIfTI."""
    ball = (((np.indices((24, 26, 28)) - np.array([12, 13, 14])[:, None, None, None]) ** 2).sum(0) < 81).astype(
        np.uint8
    )
    mask = write_head("mask.nii.gz", ball)
    first, second = write_head("a.nii.gz"), write_head("b.nii.gz", make_head(seed=3))
    third = mask.with_name("c.nii.gz")
    third.write_text("not a scan")
    return {"1": first, "2": second, "3": third}, str(mask)


def make_head(seed):
    index = np.indices((24, 26, 28)) - np.array([12, 13, 14])[:, None, None, None]
    noise = np.random.default_rng(seed).normal(0, 4, (24, 26, 28))
    return np.where((index**2).sum(0) < 81, 200 + 5 * index[1] + noise, 9).astype(np.float32)


def run(scans, folder, **changes):
    return shard.preprocess_shard(scans, folder, COARSE | changes, cohort="c")


def refuse_to_compute(monkeypatch):
    def refused(*arguments):
        raise AssertionError("computed again")

    monkeypatch.setattr(shard, "compute_scan", refused)


def test_a_bad_scan_is_a_row_and_the_others_are_whole(heads, tmp_path):
    paths, mask = heads
    table, counts = run(manifest(paths, mask), tmp_path / "out")
    assert list(table.columns) == [*VOLUMES, *quality.COLUMNS]
    assert list(table["scan"]) == ["sub-1", "sub-2", "sub-3"]
    assert list(table["status"]) == ["ok", "ok", "failed"]
    assert "not a NIfTI" in table["reason"][2]
    assert table[list(quality.COLUMNS)].iloc[2].isna().all()
    assert not layout.sidecar_path(tmp_path / "out", "sub-3").exists()

    pooled = {"before": [], "after": []}
    for scan in ("sub-1", "sub-2"):
        volume = nibabel.load(layout.volume_path(tmp_path / "out", scan))
        brain = nibabel.load(layout.mask_path(tmp_path / "out", scan))
        assert volume.get_data_dtype() == np.float32
        assert brain.get_data_dtype() == np.uint8
        for image in (volume, brain):
            np.testing.assert_array_equal(image.affine, registration.GRID_AFFINE)
            assert image.shape == registration.GRID_SHAPE
        values, inside = volume.get_fdata(dtype=np.float32), brain.get_fdata() > 0
        # The encoder's convention: mean 0 and deviation 1 in the brain, one constant below zero outside.
        assert abs(values[inside].mean()) < 1e-3
        assert len(np.unique(values[~inside])) == 1
        pooled["after"].append(values[inside])
    # The shard's histogram is that of all brain voxels that lie in its volumes.
    expected = histogram.scan_histogram(np.concatenate(pooled["after"]), intensity.BIN_WIDTHS["encoder"])
    after = counts[counts["stage"] == "after"].drop(columns="stage").reset_index(drop=True)
    pd.testing.assert_frame_equal(after, expected)
    before = counts[counts["stage"] == "before"]
    assert before["count"].sum() == after["count"].sum()
    assert list(counts.columns) == list(HISTOGRAM)


def test_a_second_run_computes_nothing_and_says_the_same(heads, tmp_path, monkeypatch):
    paths, mask = heads
    scans = manifest({name: paths[name] for name in ("2", "1")}, mask)
    first, counts = run(scans, tmp_path / "out")
    refuse_to_compute(monkeypatch)
    second, again = run(scans, tmp_path / "out")
    assert list(second["reused"]) == [1, 1]
    pd.testing.assert_frame_equal(first.drop(columns="reused"), second.drop(columns="reused"))
    pd.testing.assert_frame_equal(counts, again)


def test_what_was_found_wrong_with_a_scan_is_not_found_out_again(heads, tmp_path, monkeypatch):
    paths, mask = heads
    scans, folder, computed = manifest({"1": paths["1"]}, mask), tmp_path / "out", []
    with monkeypatch.context() as patch:

        def fail(*arguments):
            computed.append(1)
            raise ScanFailure("no head")

        patch.setattr(shard, "compute_scan", fail)
        first, _ = run(scans, folder)
        again, counts = run(scans, folder)
        assert len(computed) == 1
        pd.testing.assert_frame_equal(first, again)
        assert (again["status"][0], again["reason"][0], again["reused"][0]) == ("failed", "no head", 0)
        assert counts.empty
        run(scans, folder, interpolation="cubic")  # another recipe may find what this one did not
        assert len(computed) == 2
    table, _ = run(scans, folder)
    assert table["status"][0] == "ok"
    assert not layout.failure_path(folder, "sub-1").exists()


def test_an_unforeseen_error_is_tried_again(heads, tmp_path, monkeypatch):
    paths, mask = heads
    scans, folder = manifest({"1": paths["1"]}, mask), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shard, "compute_scan", lambda *arguments: 1 // 0)
        assert run(scans, folder)[0]["status"][0] == "failed"
    assert run(scans, folder)[0]["status"][0] == "ok"


def test_a_failed_scan_is_tried_again_when_its_file_is_another(heads, tmp_path, write_head):
    paths, mask = heads
    run(manifest(paths, mask), tmp_path / "out")
    write_head("c.nii.gz", make_head(seed=5))
    table, _ = run(manifest(paths, mask), tmp_path / "out")
    assert list(table["status"]) == ["ok", "ok", "ok"]
    assert list(table["reused"]) == [1, 1, 0]


def fail_on(monkeypatch, method, number, touched):
    """From now on ``Path.method`` fails with ``number`` for the paths that ``touched`` picks."""
    original = getattr(Path, method)

    def failing(path, *arguments, **options):
        if touched(path):
            raise OSError(number, os.strerror(number), str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, method, failing)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def volumes(folder):
    return {name: content for name, content in contents(folder).items() if "desc-failed" not in name}


def told(failure):
    """All that a job's log would hold of an error."""
    return "".join(traceback.format_exception(failure.value))


@pytest.mark.parametrize(
    ("method", "number"),
    [("write_bytes", errno.ENOSPC), ("unlink", errno.EROFS), ("write_text", errno.EDQUOT), ("read_text", errno.ESTALE)],
)
def test_a_disk_that_fails_under_the_results_stops_the_job_and_the_log_holds_no_subject(
    heads, tmp_path, monkeypatch, method, number
):
    paths, mask = heads
    folder = tmp_path / "out"
    fail_on(monkeypatch, method, number, lambda path: path.parent == folder)
    with pytest.raises(OSError, match=os.strerror(number)) as failure:
        run(manifest(paths, mask), folder)
    assert (failure.value.errno, failure.value.filename) == (number, str(folder))
    assert "sub-" not in told(failure)


def test_a_disk_that_fails_does_not_pass_for_volumes_that_have_to_be_made_anew(heads, tmp_path, monkeypatch):
    paths, mask = heads
    scans, folder = manifest({"1": paths["1"]}, mask), tmp_path / "out"
    run(scans, folder)
    before = contents(folder)
    with monkeypatch.context() as patch:
        fail_on(patch, "read_text", errno.EIO, lambda path: path.parent == folder)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            run(scans, folder)
    assert contents(folder) == before


@pytest.mark.parametrize("which", ["scan", "mask"])
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ESTALE])
def test_a_source_that_is_lost_or_cannot_be_read_stops_the_job_and_costs_no_volume(
    heads, tmp_path, monkeypatch, caplog, capfd, number, which
):
    paths, mask = heads
    scans, folder = manifest({"1": paths["1"], "2": paths["2"]}, mask), tmp_path / "out"
    run(scans, folder)
    before = contents(folder)
    lost = {"scan": paths["2"], "mask": Path(mask)}[which]
    with monkeypatch.context() as patch:
        fail_on(patch, "read_bytes", number, lambda path: path == lost)
        with pytest.raises(StudyError) as failure:
            run(scans, folder)
    line = {"scan": "line 3 of the shard's manifest: ", "mask": "line 2 of the shard's manifest (mask): "}[which]
    assert str(failure.value).startswith(f"cohort c, {line}the file cannot be read now ({os.strerror(number)})")
    assert "mounted" in str(failure.value)
    printed = capfd.readouterr()
    for text in (told(failure), caplog.text, printed.out, printed.err):
        assert "sub-" not in text
        assert lost.name not in text
        assert str(tmp_path) not in text
    assert contents(folder) == before
    assert list(run(scans, folder)[0]["reused"]) == [1, 1]


def test_a_file_without_permission_is_a_row_that_costs_no_volume_and_is_tried_again(heads, tmp_path, monkeypatch):
    paths, mask = heads
    scans, folder = manifest(paths, mask), tmp_path / "out"
    run(scans.iloc[:1], folder)
    before = volumes(folder)
    closed = (paths["1"], paths["2"])
    with monkeypatch.context() as patch:
        fail_on(patch, "read_bytes", errno.EACCES, lambda path: path in closed)
        table, _ = run(scans, folder)
    assert list(table["status"]) == ["failed"] * 3
    assert table["reason"].str.contains("read permission").tolist() == [True, True, False]
    assert volumes(folder) == before
    with monkeypatch.context() as patch:
        fail_on(patch, "read_bytes", errno.EACCES, lambda path: path == Path(mask))
        table, _ = run(scans.iloc[:1], folder)
    assert table["reason"][0].startswith("the provided brain mask: the file may not be read")
    assert volumes(folder) == before
    table, _ = run(scans, folder)
    assert list(table["status"]) == ["ok", "ok", "failed"]
    assert list(table["reused"]) == [1, 0, 0]


class OutOfMemoryError(RuntimeError):
    """As torch's, which is a RuntimeError too."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 2.00 GiB"),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_or_an_accelerator_that_fails_stops_the_job_and_costs_no_volume(heads, tmp_path, monkeypatch, error):
    paths, mask = heads
    scans, folder = manifest({"1": paths["1"]}, mask), tmp_path / "out"
    run(scans, folder)
    before = contents(folder)

    def fail(*arguments):
        raise error

    monkeypatch.setattr(shard, "compute_scan", fail)
    with pytest.raises(type(error)) as failure:
        run(scans, folder, interpolation="cubic")
    assert failure.value is error
    assert "cohort c, line 2 of the shard's manifest: memory or accelerator failed" in told(failure)
    assert "sub-" not in told(failure)
    assert contents(folder) == before


def test_torchs_own_errors_are_known_for_the_machines():
    torch = pytest.importorskip("torch")
    assert is_of_machine(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(RuntimeError) as failure:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_of_machine(failure.value)
    assert not is_of_machine(RuntimeError("The size of tensor a (2) must match the size of tensor b (3)"))


def test_a_changed_scan_alone_is_computed_again(heads, tmp_path, write_head):
    paths, mask = heads
    first, _ = run(manifest(paths, mask), tmp_path / "out")
    write_head("b.nii.gz", make_head(seed=4))
    second, _ = run(manifest(paths, mask), tmp_path / "out")
    assert list(second["reused"]) == [1, 0, 0]
    assert second["key"][0] == first["key"][0]
    assert second["key"][1] != first["key"][1]


def test_another_recipe_or_mask_makes_other_volumes(heads, tmp_path, write_head):
    paths, mask = heads
    scans = manifest({"1": paths["1"]}, mask)
    keys = {run(scans, tmp_path / "out")[0]["key"][0]}
    keys.add(run(scans, tmp_path / "out", interpolation="cubic")[0]["key"][0])
    keys.add(run(scans, tmp_path / "out", intensity="minmax")[0]["key"][0])
    changed = nibabel.load(mask).get_fdata().astype(np.uint8)
    changed[12, 13, 3:7] = 1
    write_head("mask.nii.gz", changed)
    table, _ = run(scans, tmp_path / "out", intensity="minmax")
    assert table["reused"][0] == 0
    keys.add(table["key"][0])
    assert len(keys) == 4


def test_the_same_scan_gives_the_same_bytes(heads, tmp_path):
    paths, mask = heads
    scans = manifest({"1": paths["1"]}, mask)
    for name in ("one", "two"):
        run(scans, tmp_path / name)
    for path in (layout.volume_path, layout.mask_path):
        assert path(tmp_path / "one", "sub-1").read_bytes() == path(tmp_path / "two", "sub-1").read_bytes()


def test_volumes_of_scans_that_left_or_fail_now_are_removed_and_others_files_stay(heads, tmp_path, write_head):
    paths, mask = heads
    folder = tmp_path / "out"
    run(manifest(paths, mask), folder)
    (folder / "notes.txt").write_text("mine")
    half_written = folder / f".123.{layout.volume_path(folder, 'sub-1').name}"
    half_written.write_bytes(b"half")
    paths["1"].write_bytes(paths["1"].read_bytes()[:100])
    run(manifest({"1": paths["1"]}, mask), folder)
    why = layout.failure_path(folder, "sub-1")
    assert {path.name for path in folder.iterdir()} == {"notes.txt", why.name}
    assert "cut off" in json.loads(why.read_text())["reason"]
    run(manifest({}), folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("damage", ["volume", "mask", "sidecar"])
def test_a_damaged_or_missing_file_is_made_again(heads, tmp_path, damage):
    paths, mask = heads
    scans = manifest({"1": paths["1"]}, mask)
    run(scans, tmp_path / "out")
    path = getattr(layout, f"{damage}_path")(tmp_path / "out", "sub-1")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert run(scans, tmp_path / "out")[0]["reused"][0] == 0
    if damage != "sidecar":  # which holds seconds
        assert path.read_bytes() == whole
    path.unlink()
    assert run(scans, tmp_path / "out")[0]["reused"][0] == 0


@pytest.mark.parametrize("stop_at", ["volume", "mask", "sidecar"])
def test_a_job_stopped_between_two_files_leaves_nothing_that_is_taken_for_whole(heads, tmp_path, monkeypatch, stop_at):
    paths, mask = heads
    scans, folder = manifest({"1": paths["1"], "2": paths["2"]}, mask), tmp_path / "out"
    run(scans, folder, intensity="minmax")

    class Stopped(BaseException):
        """As SIGKILL: nothing of ours catches it."""

    def stopped_before(original, wanted):
        def write(content, path):
            if str(path) == str(wanted):
                raise Stopped
            return original(content, path)

        return write

    wanted = getattr(layout, f"{stop_at}_path")(folder, "sub-2")
    with monkeypatch.context() as patch:
        for name in ("_write_nifti", "write_text"):
            patch.setattr(derivatives, name, stopped_before(getattr(derivatives, name), wanted))
        with pytest.raises(Stopped):
            run(scans, folder)
    # Neither recipe may now find the second scan's files good; the first scan is kept.
    table, _ = run(scans, folder)
    assert list(table["reused"]) == [1, 0]
    assert list(table["status"]) == ["ok", "ok"]


def test_a_shard_in_which_all_fail_and_an_empty_one_are_ordinary_tables(heads, tmp_path):
    paths, _ = heads
    for scans, rows in ((manifest({"1": paths["3"], "2": tmp_path}), 2), (manifest({}), 0)):
        table, counts = run(scans, tmp_path / "out")
        assert (table["status"] == "failed").sum() == len(table) == rows
        assert len(counts) == 0
        assert {name: str(table[name].dtype) for name in VOLUMES} == dict(VOLUMES)
        assert {name: str(counts[name].dtype) for name in HISTOGRAM} == dict(HISTOGRAM)


def test_an_unforeseen_error_is_a_row_and_the_log_holds_no_subject(heads, tmp_path, monkeypatch, caplog):
    paths, mask = heads
    original = shard.compute_scan

    def sometimes(source, *others):
        if source.path == paths["1"]:
            raise ZeroDivisionError(f"in {source.path}")
        return original(source, *others)

    monkeypatch.setattr(shard, "compute_scan", sometimes)
    table, _ = run(manifest(paths, mask), tmp_path / "out")
    assert list(table["status"]) == ["failed", "ok", "failed"]
    assert "ZeroDivisionError" in table["reason"][0]
    assert "ZeroDivisionError" in caplog.text
    assert "sub-" not in caplog.text
    assert str(tmp_path) not in caplog.text


def test_the_record_says_what_was_done(heads, tmp_path):
    paths, mask = heads
    table, _ = run(manifest({"1": paths["1"]}, mask), tmp_path / "out")
    record = json.loads(layout.sidecar_path(tmp_path / "out", "sub-1").read_text())
    names = [step["name"] for step in record["steps"]]
    assert names[:4] == ["reading", "brain_extraction", "bias_field", "registration"]
    assert names[4:] == ["resampling", "intensity", "quality", "snapshot"]
    assert record["key"] == table["key"][0]
    assert record["source"]["sha256"] == table["sha256"][0]
    # The path of an extractor's weights decides nothing; their checksum does.
    assert record["method"]["recipe"] | {"extractor_weights": None} == shard.complete_recipe(COARSE)
    assert "extractor_weights" not in record["method"]["recipe"]
    # The determinant in the table is that of the inverse of the transform on record.
    found = np.array(record["steps"][3]["parameters"]["mni_to_scanner"])
    assert table["affine_determinant"][0] == pytest.approx(1 / np.linalg.det(found), rel=1e-4)


def test_a_brain_mask_that_cannot_be_read_is_the_reason(heads, tmp_path):
    paths, mask = heads
    table, _ = run(manifest({"1": paths["1"]}, str(paths["3"])), tmp_path / "out")
    assert table["reason"][0].startswith("the provided brain mask: not a NIfTI")
    table, _ = run(manifest({"1": paths["1"]}), tmp_path / "out")
    assert "fill its column mask" in table["reason"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extracter": "deepbet"}, "unknown extracter"),
        ({"extractor": "deepbett"}, "did you mean deepbet"),
        ({"intensity": "z"}, "unknown intensity"),
        ({"interpolation": "nearest"}, "linear or cubic"),
        ({"registration_resolution": 1.5}, "registration_resolution"),
        ({"bias_field_spacing": 0.1}, "bias_field_spacing"),
        ({"bias_field_iterations": []}, "bias_field_iterations"),
        ({"registration_iterations": [10, -1]}, "registration_iterations"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused_before_any_work(tmp_path, change, words):
    with pytest.raises(StudyError, match=words):
        run(manifest({}), tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_a_scan_listed_twice_is_refused(heads, tmp_path):
    paths, mask = heads
    scans = manifest({"1": paths["1"]}, mask)
    with pytest.raises(StudyError, match="listed twice"):
        run(pd.concat([scans, scans]), tmp_path / "out")


def test_comments_and_docstrings_do_not_count_as_code():
    plain = "def f(x):\n    return x + 1\n"
    told = '"""A module."""\n\n\ndef f(x):\n    """Adds one."""\n    # because\n    return (x + 1)\n'
    assert derivatives.code_digest(plain) == derivatives.code_digest(told)
    assert derivatives.code_digest(plain) != derivatives.code_digest(plain.replace("1", "2"))


def test_for_a_fitted_method_the_volume_keeps_its_units_and_the_record_holds_what_the_fit_needs(heads, tmp_path):
    paths, mask = heads
    scans = manifest({"1": paths["1"]}, mask)
    table, counts = run(scans, tmp_path / "out", intensity="nyul")
    plain, _ = run(scans, tmp_path / "plain", intensity="none")
    assert table["key"][0] != plain["key"][0]
    values, inside = derivatives.read(tmp_path / "out", "sub-1", "here")
    np.testing.assert_array_equal(values, derivatives.read(tmp_path / "plain", "sub-1", "here")[0])
    record = json.loads(layout.sidecar_path(tmp_path / "out", "sub-1").read_text())
    (step,) = (step for step in record["steps"] if step["name"] == "intensity")
    assert step["parameters"] == {"method": "nyul", "landmarks": nyul.landmarks(values, inside)}
    assert set(counts["stage"]) == {"before"}


def test_a_failure_message_is_one_line(heads, tmp_path, monkeypatch):
    paths, mask = heads

    def fail(*arguments):
        raise ScanFailure("first\nsecond\tthird")

    monkeypatch.setattr(shard, "compute_scan", fail)
    assert run(manifest({"1": paths["1"]}, mask), tmp_path / "out")[0]["reason"][0] == "first second third"
