"""Runs a cell in processes that are killed with SIGKILL at random moments, until one comes to its end.

    python killed_runs.py FOLDER SEED NAME...

One process imports everything once; each run is a fork of it, so that a kill falls into training and not into imports. For every name
it runs the cell undisturbed, then again with kills, and prints a JSON line: the digests of both results, how many kills hit, and how many
of the runs that followed found a round of an earlier one.
"""

import hashlib
import json
import logging
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import pandas as pd
import torch
from small_clients import make_client

from fedbrain.federated import apps, grid, local  # noqa: F401 - a fork has them then
from fedbrain.federated.cell import train_cell

SHAPE = (384, 2, 2, 2)
TRAINING = {"rounds": 5, "batch_size": 2, "learning_rate": 0.01}
KILLS = 2
CELLS = {
    "state in the rule": {"aggregation": "fedadam"},
    "state in the rule and in the clients": {"aggregation": "fedce"},
    "state in the clients": {"aggregation": "scaffold", "aggregation_options": {"learning_rate": 0.1}},
    "models of the clients": {"aggregation": "ditto"},
    "drawn clients": {"aggregation": "fedavg", "training": TRAINING | {"sample": 2}},
    "drawn clients with models": {"aggregation": "ditto", "training": TRAINING | {"sample": 2, "schedule": "cosine"}},
    "models at the end": {"aggregation": "fedavg_ft", "aggregation_options": {"personal_epochs": 8}},
    "alone": {"aggregation": "local", "training": TRAINING | {"patience": 2}},
}
PREDICTIONS = [f"predictions{kind}{side}.tsv" for kind in ("", "_global") for side in ("", "_validation")]
RESULTS = ("model.safetensors", *PREDICTIONS)


def start(cell, folder):
    """The process id of a fork that trains ``cell`` into ``folder``."""
    if pid := os.fork():
        return pid
    try:
        logging.disable(logging.CRITICAL)
        clients = {n: make_client(n, 6 + k, 4, 3, seed=k, shape=SHAPE, effect=0.1) for k, n in enumerate("ABC")}
        train_cell(clients, **({"head": "linear", "tuning": "frozen", "training": TRAINING} | cell), folder=folder)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def end(pid):
    """Waits for a run: whether a signal ended it. Raises RuntimeError where it failed by itself."""
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a run failed by itself")
    return os.WIFSIGNALED(status)


def digests(folder):
    """Of everything that a run writes but what is measured."""
    rounds = pd.read_csv(folder / "rounds.tsv", sep="\t").drop(columns=["seconds", "peak_memory"]).to_csv()
    contents = [(folder / name).read_bytes() for name in RESULTS] + [rounds.encode()]
    return [hashlib.sha256(content).hexdigest() for content in contents]


def main():
    root, seed, *names = sys.argv[1:]
    torch.set_num_threads(1)
    moments = random.Random(int(seed))
    for name in names:
        folder = Path(root) / name.replace(" ", "_")
        began = time.monotonic()
        end(start(CELLS[name], folder / "whole"))
        took, hits, found = time.monotonic() - began, 0, 0
        for _ in range(KILLS):
            pid = start(CELLS[name], folder / "killed")
            time.sleep(moments.uniform(0, took))
            os.kill(pid, signal.SIGKILL)
            hits += end(pid)
            found += any((folder / "killed").glob("*checkpoint.safetensors"))
        end(start(CELLS[name], folder / "killed"))
        left = sorted(path.name for path in (folder / "killed").iterdir() if path.name != "flwr")
        result = {"name": name, "hits": hits, "found": found, "left": left}
        print(
            json.dumps(result | {"whole": digests(folder / "whole"), "killed": digests(folder / "killed")}), flush=True
        )


if __name__ == "__main__":
    main()
