"""How much memory the server needs to aggregate a round, in models' worth of float32, by rule and number of clients.

    python benchmarks/aggregation_memory.py [--rules simpleavg fedavg] [--clients 20] [--others fedadam median fedce] [--few 4]

The model has the tensors of the whole image encoder (93 M parameters, 372 MB). Clients reply with random updates, made when they are asked
for. Measured is the peak of anonymous memory, sampled 20 times a second, beyond what is held when aggregation begins: the global model,
what the rule remembers, the message down. ``--rules`` add updates up as they come
and are to stay within 3 models, whatever the number of clients: a running sum in float64 and one update. ``--others`` have no such bound
(server optimizers make new moments beside the old ones, other rules need all updates at once), so they are run with ``--few`` clients.
Each in a process of its own. One thread.
"""

import argparse
import os
import subprocess
import sys

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedbrain.federated.accounting import PeakMemory, anonymous_memory
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.grid import InProcessGrid
from fedbrain.federated.rounds import run_rounds
from fedbrain.federated.task import TrainingOptions
from fedbrain.models.operations import bare_encoder

LIMIT = 3.0
TOLERANCE = 0.2  # of a model: for a moment the largest tensor in float64, twice


def reply_to(message: Message, context) -> Message:
    name = context.node_config["client"]
    if message.metadata.message_type == "query":
        record = ConfigRecord({"client": name, "train": 10 + int(name), "validation": 0})
        return Message(RecordDict({"client": record}), reply_to=message)
    content = {"metrics": MetricRecord({"scans": 10 + int(name), "seconds": 0.0})}
    if message.metadata.message_type == "train":
        generator, arrays = np.random.default_rng(int(name)), ArrayRecord()
        for key, array in message.content["arrays"].items():
            step = generator.random(array.shape, dtype=np.float32)
            arrays[key] = Array(step)
        content["arrays"] = arrays
    return Message(RecordDict(content), reply_to=message)


def measure(name: str, clients: int) -> None:
    """Prints one line: bytes of the model, peak beyond what was held."""
    tensors = {n: np.zeros(p.shape, np.float32) + 0.5 for n, p in bare_encoder("sam_med3d").named_parameters()}
    grid = InProcessGrid(reply_to, [f"{number:02d}" for number in range(clients)])
    kind, held = type(build_rule(name)), []

    class Watched(kind):
        def gather(self, *arguments):
            held.append(anonymous_memory())
            return super().gather(*arguments)

    with PeakMemory("cpu") as peak:
        run_rounds(grid, Watched(), tensors, TrainingOptions(rounds=1))
    print(sum(tensor.nbytes for tensor in tensors.values()), peak.bytes - held[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="*", default=["simpleavg", "fedavg"])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--others", nargs="*", default=["fedadam", "median", "fedce"])
    parser.add_argument("--few", type=int, default=4)
    parser.add_argument("--one", nargs=2, metavar=("RULE", "CLIENTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.one[0], int(arguments.one[1]))
        return 0
    missed = False
    print("rule\tclients\tmodel_mb\tpeak_mb\tmodels", flush=True)
    runs = [(rule, arguments.clients, True) for rule in arguments.rules]
    for rule, clients, bounded in runs + [(rule, arguments.few, False) for rule in arguments.others]:
        command = [sys.executable, __file__, "--one", rule, str(clients)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        model, peak = map(int, output.split())
        print(rule, clients, f"{model / 1e6:.0f}", f"{peak / 1e6:.0f}", f"{peak / model:.2f}", sep="\t", flush=True)
        missed |= bounded and peak / model > LIMIT + TOLERANCE
    print("target", "missed" if missed else "met", f"(averages: at most {LIMIT:g} models and {TOLERANCE:g} of one)")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
