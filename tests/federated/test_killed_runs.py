"""Training processes that are really killed, at random moments, end in the bytes of an undisturbed run."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from killed_runs import CELLS, KILLS, RESULTS

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What killed_runs.py says of each cell; the moments differ from call to call, and the seed is told."""
    seed = int(os.environ.get("FEDBRAIN_KILL_SEED", random.SystemRandom().randrange(10**6)))
    command = [sys.executable, HERE / "killed_runs.py", tmp_path_factory.mktemp("killed"), str(seed), *CELLS]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return seed, {result["name"]: result for result in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", CELLS)
def test_a_killed_run_ends_in_the_bytes_of_an_undisturbed_one(runs, name):
    seed, results = runs
    result = results[name]
    assert result["killed"] == result["whole"], f"FEDBRAIN_KILL_SEED={seed}"
    assert set(result["left"]) == {*RESULTS, "rounds.tsv", "summary.json"}  # no checkpoint, no clients' files


def test_kills_have_hit_runs_and_runs_have_gone_on(runs):
    """Of all: a single kill may come after the end, or before the first round."""
    _, results = runs
    assert sum(result["hits"] for result in results.values()) >= len(CELLS) * KILLS / 4
    assert sum(result["found"] for result in results.values()) > 0
