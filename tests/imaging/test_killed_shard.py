"""Shards in processes of their own: killed at any moment, started twice, side by side."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import nibabel
import numpy as np
import pandas as pd
import pytest

from fedbrain.errors import StudyError
from fedbrain.imaging import layout, registration, shard
from fedbrain.tables import MANIFEST, write_table

# Coarse and short; balls, which fit no template.
RECIPE = {"extractor": "provided", "bias_field_spacing": 10.0, "bias_field_iterations": [1]}
RECIPE |= {"registration_resolution": 4, "registration_iterations": [1]}
RECIPE |= {"registration_search_below": 0, "registration_least_similarity": 0}
KILLS = 20
SHAPE = (24, 26, 28)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> pd.DataFrame:
    """Four scans with a mask for all."""
    folder, index = tmp_path_factory.mktemp("scans"), np.indices(SHAPE) - np.array([12, 13, 14])[:, None, None, None]
    ball, random_numbers = (index**2).sum(0) < 81, np.random.default_rng(0)
    nibabel.save(nibabel.Nifti1Image(ball.astype(np.uint8), np.diag([8.0, 8, 8, 1])), folder / "mask.nii")
    rows = []
    for number in range(4):
        head = np.where(ball, 200 + 5 * index[number % 3] + random_numbers.normal(0, 4, SHAPE), 9).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(head, np.diag([8.0, 8, 8, 1])), folder / f"{number}.nii.gz")
        rows.append({"scan": f"sub-{number}", "subject": str(number), "path": str(folder / f"{number}.nii.gz")})
    frame = pd.DataFrame(rows).assign(mask=str(folder / "mask.nii"), fingerprint="f")
    return frame.reindex(columns=list(MANIFEST)).astype(MANIFEST)


def preprocess(scans, folder, tables):
    """What a job does."""
    for name, table in zip(("volumes", "intensity"), shard.preprocess_shard(scans, folder, RECIPE, cohort="c")):
        table.to_csv(f"{tables}-{name}.tsv", sep="\t", index=False)


@pytest.fixture(scope="module")
def process():
    """Starts ``preprocess`` in a process of its own: a fork, so that it has loaded everything already."""
    registration.template()
    registration._fixed_image(4)
    context = multiprocessing.get_context("fork")
    return lambda *arguments: context.Process(target=preprocess, args=arguments)


def outputs(folder) -> dict[str, bytes]:
    """All bytes of volumes and masks by file name. (The records hold seconds.)"""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.endswith(".nii.gz")}


def table(path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t").drop(columns=["seconds", "reused"], errors="ignore")


def test_killed_twenty_times_it_ends_in_the_same_bytes(scans, tmp_path, process):
    undisturbed = process(scans, tmp_path / "one", tmp_path / "one")
    start = time.monotonic()
    undisturbed.start()
    undisturbed.join()
    whole_run = time.monotonic() - start
    assert undisturbed.exitcode == 0
    expected, moments = outputs(tmp_path / "one"), random.Random(1)
    assert len(expected) == 8
    folder, kills, seen = tmp_path / "two", 0, {}
    for _ in range(KILLS):
        job = process(scans, folder, tmp_path / "two")
        job.start()
        job.join(moments.uniform(0, whole_run) / (1 if kills % 4 else 3))
        if job.is_alive():
            job.kill()
            kills += 1
        job.join()
        assert job.exitcode in (0, -signal.SIGKILL)
        # Every scan whose record is there is whole, and the same as without a kill; what was finished once stays.
        for scan in scans["scan"]:
            if layout.sidecar_path(folder, scan).exists():
                for path in (layout.volume_path(folder, scan), layout.mask_path(folder, scan)):
                    assert path.read_bytes() == expected[path.name]
                seen.setdefault(scan, layout.sidecar_path(folder, scan).stat().st_mtime_ns)
            assert (scan in seen) == layout.sidecar_path(folder, scan).exists()
        for scan, stamp in seen.items():
            assert layout.sidecar_path(folder, scan).stat().st_mtime_ns == stamp  # never made a second time
        if len(seen) == len(scans):
            for path in folder.iterdir():
                path.unlink()
            seen = {}
    assert kills >= KILLS // 2
    job = process(scans, folder, tmp_path / "two")
    job.start()
    job.join()
    assert job.exitcode == 0
    assert outputs(folder) == expected
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]  # what kills left half written
    for name in ("volumes", "intensity"):
        pd.testing.assert_frame_equal(table(tmp_path / f"one-{name}.tsv"), table(tmp_path / f"two-{name}.tsv"))


def test_two_shards_side_by_side_give_what_they_give_one_after_the_other(scans, tmp_path, process):
    halves = {"0": scans.iloc[:2], "1": scans.iloc[2:].reset_index(drop=True)}
    jobs = [process(half, tmp_path / "together" / name, tmp_path / f"together-{name}") for name, half in halves.items()]
    (tmp_path / "together").mkdir()
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0]
    for name, half in halves.items():
        shard.preprocess_shard(half, tmp_path / "apart" / name, RECIPE, cohort="c")
        assert outputs(tmp_path / "together" / name) == outputs(tmp_path / "apart" / name)
        assert set(pd.read_csv(tmp_path / f"together-{name}-volumes.tsv", sep="\t")["scan"]) == set(half["scan"])


def test_a_shard_that_is_worked_on_is_not_started_a_second_time(scans, tmp_path, process):
    folder = tmp_path / "out"
    first = process(scans, folder, tmp_path / "first")
    first.start()
    while first.is_alive() and not any(folder.glob("*")):
        time.sleep(0.01)
    assert first.is_alive()
    with pytest.raises(StudyError, match="another process works on this shard") as failure:
        shard.preprocess_shard(scans, folder, RECIPE, cohort="c")
    assert "sub-" not in str(failure.value)
    first.kill()
    first.join()
    again, _ = shard.preprocess_shard(scans, folder, RECIPE, cohort="c")  # a process that was killed holds nothing
    assert list(again["status"]) == ["ok"] * 4
    assert again["reused"].sum() >= 1


THREADS = """
import ast, os, sys
from pathlib import Path
from fedbrain.devices import set_threads
set_threads(1)
import pandas as pd
from fedbrain.imaging.shard import preprocess_shard
from fedbrain.tables import MANIFEST, read_table
table, _ = preprocess_shard(read_table(sys.argv[1], MANIFEST), sys.argv[2], ast.literal_eval(sys.argv[3]), cohort="c")
assert list(table["status"]) == ["ok"]
for task in os.listdir("/proc/self/task"):
    print(task == str(os.getpid()), sum(map(int, Path(f"/proc/self/task/{task}/stat").read_text().rsplit(")", 1)[1].split()[11:13])))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc/self/task: not Linux")
def test_a_job_with_one_thread_computes_in_one(scans, tmp_path):
    write_table(scans.iloc[:1], tmp_path / "manifest.tsv")
    command = [sys.executable, "-c", THREADS, str(tmp_path / "manifest.tsv"), str(tmp_path / "out"), repr(RECIPE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ticks = [line.split() for line in done.stdout.splitlines()]
    main = sum(int(count) for is_main, count in ticks if is_main == "True")
    assert main >= 0.9 * sum(int(count) for _, count in ticks)
