"""How much memory the server needs to aggregate a round, in models' worth of float32, by rule and number of clients.

    python benchmarks/aggregation_memory.py [--rules fedavg fedavgm fedadam fedyogi] [--clients 20] [--others median fedce] [--few 4]

The model has the tensors of the whole image encoder (93 M parameters, 372 MB). Clients reply with noise, made into messages when they are
asked for. Measured is a whole round, the second one (messages down, the updates, the new model), beyond what is held right before it: the
global model and what the rule remembers from round to round (``state``, in models). No part of the round is left out. Two ways, each in a
process of its own:

- ``allocated``: peak of what Python and NumPy have allocated (tracemalloc; exact, the same in each run),
- ``resident``: peak of the process's anonymous memory, read 500 times a second. It has what the C library keeps of freed blocks, too.

``--rules`` add updates up as they come and are to stay within 3 models, whatever the number of clients: 2 for the running sum in
float64 and 1 for an update. The message down adds none, since the global model is held as that message. A new model and new
moments take the place that the sum leaves once the last update is in it: 1 model (fedavg), 2 (fedavgm) or 3 (fedadam, fedyogi). ``--others``
need all updates at once, so they have no such bound and are run with ``--few`` clients. One thread.
"""

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import threading
import tracemalloc
from itertools import count
from math import prod

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedbrain.federated.accounting import anonymous_memory
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.arrays import serialized
from fedbrain.federated.grid import InProcessGrid
from fedbrain.federated.rounds import run_rounds
from fedbrain.federated.task import TrainingOptions
from fedbrain.models.operations import bare_encoder

LIMIT = 3.0
TOLERANCE = 0.1  # of a model: blocks of 65,536 elements, and for a server optimizer the sum of the tensor that it is at
PAUSE = 0.002  # seconds between two readings
NOISE = np.random.default_rng(0).random(1 << 22, dtype=np.float32)  # the largest tensor has 4.0 M elements


def reply_to(message: Message, context) -> Message:
    name = context.node_config["client"]
    if message.metadata.message_type == "query":
        record = ConfigRecord({"client": name, "train": 10 + int(name), "validation": 0})
        return Message(RecordDict({"client": record}), reply_to=message)
    content = {"metrics": MetricRecord({"scans": 10 + int(name), "seconds": 0.0})}
    if message.metadata.message_type == "train":
        arrays = ArrayRecord()
        for key, array in message.content["arrays"].items():
            arrays[key] = serialized(NOISE[int(name) :][: prod(array.shape)].reshape(array.shape))
        content["arrays"] = arrays
    return Message(RecordDict(content), reply_to=message)


class Allocated:
    """The peak of what Python and NumPy allocate between start and stop, beyond what they held at the start."""

    def __init__(self):
        self.held = self.peak = 0
        tracemalloc.start()

    def now(self) -> int:
        return tracemalloc.get_traced_memory()[0]

    def start(self) -> None:
        tracemalloc.reset_peak()
        self.held = self.now()

    def stop(self) -> None:
        self.peak = tracemalloc.get_traced_memory()[1]


class Resident:
    """The highest anonymous memory between start and stop, beyond that at the start."""

    def __init__(self):
        self.held = self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def now(self) -> int:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what is freed, but kept, would hide what comes
        return anonymous_memory()

    def start(self) -> None:
        self.held = self.peak = self.now()
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._over.wait(PAUSE):
            self.peak = max(self.peak, anonymous_memory())


WAYS = {"allocated": Allocated, "resident": Resident}


def measure(name: str, clients: int, way: str) -> None:
    """Prints one line: bytes of the model, of the state before the second round, and of that round's peak beyond it."""
    memory = WAYS[way]()
    before = memory.now()
    tensors = {n: np.zeros(p.shape, np.float32) + 0.5 for n, p in bare_encoder("sam_med3d").named_parameters()}
    model = sum(tensor.nbytes for tensor in tensors.values())
    grid = InProcessGrid(reply_to, [f"{number:02d}" for number in range(clients)])
    kind, rounds = type(build_rule(name)), count(1)

    class Watched(kind):
        def beside(self, state):  # the first thing that a round asks its rule for
            {2: memory.start, 3: memory.stop}.get(next(rounds), lambda: None)()
            return super().beside(state)

    run_rounds(grid, Watched(), tensors, TrainingOptions(rounds=2))
    print(model, memory.held - before - model, memory.peak - memory.held)  # less the initial model, which is ours


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="*", default=["fedavg", "fedavgm", "fedadam", "fedyogi"])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--others", nargs="*", default=["median", "fedce"])
    parser.add_argument("--few", type=int, default=4)
    parser.add_argument("--one", nargs=3, metavar=("RULE", "CLIENTS", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.one[0], int(arguments.one[1]), arguments.one[2])
        return 0
    missed = False
    print("rule\tclients\tmodel_mb\tstate\tallocated\tresident", flush=True)
    runs = [(rule, arguments.clients, True) for rule in arguments.rules]
    for rule, clients, bounded in runs + [(rule, arguments.few, False) for rule in arguments.others]:
        peaks = []
        for way in WAYS:
            command = [sys.executable, __file__, "--one", rule, str(clients), way]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            model, state, peak = map(int, output.split())
            peaks.append(peak / model)
        print(rule, clients, f"{model / 1e6:.0f}", *(f"{x:.2f}" for x in (state / model, *peaks)), sep="\t", flush=True)
        missed |= bounded and peaks[0] > LIMIT + TOLERANCE
    print(
        "target",
        "missed" if missed else "met",
        f"(allocated, rules that add up: at most {LIMIT:g} models and {TOLERANCE:g} of one)",
    )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
