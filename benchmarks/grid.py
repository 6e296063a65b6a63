"""What the published study's grid costs on kept embeddings: 3 heads x 4 aggregations x 3 seeds, and how near its training is to bare convolutions.

    python benchmarks/grid.py [--heads linear conv_s conv_l] [--scans 200] [--rounds 10] [--repetitions 5]

Noise embeddings (384 x 8 x 8 x 8, float16) of four clients, 70 % for training, 10 % for validation; batches of 16. One thread, and processor
time throughout, so that other load does not count; two cores take half of the sum, since the grid's jobs do not wait for each other.

Of each head, FedAvg is run for one round and for two (for ten and for twenty without convolutions): the second one's time is that of a
round, what is left is the fixed part of a cell (its model, its predictions, its files). Each other aggregation is run for one round (or
ten), and its round is that time less FedAvg's fixed part.
A job's start (Python, imports) is measured by itself. A cell is then start + fixed + rounds x round; ``--large`` gives the same
for more scans and rounds: rounds and predictions grow with the scans. Snakemake's own start of a job is not in it.

The share: a client's training (fedbrain.federated.task.train on float16 rows) against the head's convolutions alone on random float32
batches of the same sizes, forward, backward and AdamW's step: no norms, no activation, no loss, no data. Interleaved; median of the
paired ratios. The targets: at most 60 minutes on two cores, a share of at least 70 %.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import nn

from fedbrain.devices import keep_freed_memory
from fedbrain.federated.cell import train_cell
from fedbrain.federated.data import ClientData, Rows, Samples
from fedbrain.federated.task import AdamW, TrainingOptions, round_generator, train
from fedbrain.models.heads import build_head
from fedbrain.models.tuning import OUTPUT

AGGREGATIONS = ("fedavg", "simpleavg", "fedce", "rate_my_lora")
CLIENTS, SEEDS, CORES = 4, 3, 2
MINUTES, SHARE = 60, 0.70
IMPORTS = "import fedbrain.federated.cell, fedbrain.federated.apps, fedbrain.federated.grid, pandas"


def noise_clients(scans: int) -> dict[str, ClientData]:
    generator = torch.Generator().manual_seed(0)

    def samples(count: int, tag: str) -> Samples:
        x = torch.randn(count, 384, 8, 8, 8, generator=generator).half()
        ids = tuple(f"{tag}-{number}" for number in range(count))
        return Samples(Rows(list(x)), torch.arange(count) % 2, ids, (None,) * count, ids)

    each = scans // CLIENTS
    train, validation = each * 7 // 10, each // 10
    return {
        name: ClientData(
            name,
            samples(train, f"{name}-train"),
            samples(validation, f"{name}-validation"),
            samples(each - train - validation, f"{name}-test"),
            origin={"encoder": "noise", "weights": "noise", "cut": OUTPUT},
        )
        for name in (f"client{number}" for number in range(CLIENTS))
    }


def cell_seconds(clients: dict[str, ClientData], head: str, aggregation: str, rounds: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        cell = {"head": head, "tuning": "frozen", "aggregation": aggregation}
        train_cell(clients, **cell, training={"rounds": rounds}, folder=Path(folder) / "cell")
        return time.process_time() - start


def start_seconds() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def share_of_bare(client: ClientData, head: str, repetitions: int) -> tuple[float, float, float]:
    """Processor seconds of an epoch of training, of its bare convolutions, and the median of bare over training."""
    options, size = TrainingOptions(), len(client.train)
    model, convolutions = build_head(head), nn.Sequential(*_convolutions(build_head(head)))
    batches = [torch.randn(len(part), 384, 8, 8, 8) for part in torch.arange(size).split(options.batch_size)]

    def engine() -> None:
        train(model, client.train, options, round_generator(0, client.name, 1), "cpu")

    def bare() -> None:
        stepper = AdamW(list(convolutions.parameters()), options.learning_rate, options.weight_decay)
        for batch in batches:
            convolutions.zero_grad(set_to_none=True)
            convolutions(batch).sum().backward()
            stepper.step()

    engine(), bare()
    times = {engine: [], bare: []}
    for repetition in range(repetitions):
        for way in (engine, bare)[:: 1 if repetition % 2 else -1]:
            start = time.process_time()
            way()
            times[way].append(time.process_time() - start)
    return median(times[engine]), median(times[bare]), median(b / e for e, b in zip(times[engine], times[bare]))


def _convolutions(head: nn.Module) -> list[nn.Module]:
    return [module for module in head.modules() if isinstance(module, nn.Conv3d)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", default=["linear", "conv_s", "conv_l"])
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--large", type=int, nargs=2, metavar=("SCANS", "ROUNDS"), default=[2000, 50])
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()  # as a training job does
    torch.set_num_threads(1)
    clients, missed = noise_clients(arguments.scans), False
    print("head\ttraining_s\tbare_s\tshare", flush=True)
    for head in arguments.heads:
        if _convolutions(build_head(head)):
            trained, bare, share = share_of_bare(clients["client0"], head, arguments.repetitions)
            print(head, f"{trained:.2f}", f"{bare:.2f}", f"{share:.2f}", sep="\t", flush=True)
            missed |= share < SHARE
    cell_seconds(noise_clients(40), "linear", "fedavg", 1)  # first calls
    start = median(start_seconds() for _ in range(3))
    print(f"start of a job: {start:.1f} s\nhead\taggregation\tfixed_s\tround_s\tcell_s\tlarge_cell_s", flush=True)
    seconds = large = 0.0
    scale = arguments.large[0] / arguments.scans
    for head in arguments.heads:
        some = 1 if _convolutions(build_head(head)) else 10
        once = {aggregation: cell_seconds(clients, head, aggregation, some) for aggregation in AGGREGATIONS}
        fixed = 2 * once["fedavg"] - cell_seconds(clients, head, "fedavg", 2 * some)
        for aggregation, whole in once.items():
            of_round = (whole - fixed) / some
            cell = start + fixed + arguments.rounds * of_round
            large_cell = start + scale * (fixed + arguments.large[1] * of_round)
            seconds, large = seconds + SEEDS * cell, large + SEEDS * large_cell
            columns = (f"{value:.2f}" for value in (fixed, of_round, cell, large_cell))
            print(head, aggregation, *columns, sep="\t", flush=True)
    minutes = seconds / 60 / CORES
    print(f"{SEEDS} seeds, {arguments.scans} scans, {arguments.rounds} rounds: {minutes:.1f} minutes on {CORES} cores")
    print(f"{SEEDS} seeds, {arguments.large[0]} scans, {arguments.large[1]} rounds: {large / 3600 / CORES:.1f} hours")
    missed |= minutes > MINUTES
    print(
        "target", "missed" if missed else "met", f"(at most {MINUTES} minutes; training at {SHARE:.0%} of bare or more)"
    )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
