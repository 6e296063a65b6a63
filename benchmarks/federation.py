"""How much the federated engine costs over a loop written by hand that does the same work on the same data.

    python benchmarks/federation.py [--heads linear conv_s] [--scans 200] [--clients 4] [--rounds 5] [--repetitions 5]

Both train every client with the same function, evaluate every global model on every client's validation scans and average
by scans, in the same order (a client evaluates what it received, then trains); the engine also serializes messages, counts
bytes and writes rows. Repetitions are interleaved and the median of
the paired ratios is printed, wall clock and processor time, so that other load on the machine falls on both. The target is
a ratio of processor times of at most 1.05. One thread.
"""

import argparse
import os
import sys
import time
from statistics import median

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import torch

from fedbrain.devices import keep_freed_memory
from fedbrain.federated.accounting import PeakMemory
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.apps import build_client_app
from fedbrain.federated.data import ClientData, Samples
from fedbrain.federated.grid import InProcessGrid
from fedbrain.federated.rounds import run_rounds
from fedbrain.federated.sharing import Sharing
from fedbrain.federated.task import TrainingOptions, evaluate, round_generator, train
from fedbrain.models.heads import build_head

SEED = 0
TARGET = 1.05


def synthetic_clients(scans: int, clients: int) -> dict[str, ClientData]:
    """Noise embeddings; four fifths of each client's scans for training, the rest for validation."""
    generator = torch.Generator().manual_seed(SEED)

    def samples(count: int, tag: str) -> Samples:
        x = torch.randn(count, 384, 8, 8, 8, generator=generator).half()
        ids = tuple(f"{tag}{number}" for number in range(count))
        return Samples(x, torch.arange(count) % 2, ids, (None,) * count, ids)

    each = scans // clients
    return {
        name: ClientData(name, samples(each * 4 // 5, name), samples(each - each * 4 // 5, name), samples(0, name))
        for name in (f"client{number}" for number in range(clients))
    }


def build_model(head: str) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build_head(head)


def by_hand(clients: dict[str, ClientData], head: str, options: TrainingOptions) -> dict[str, torch.Tensor]:
    model = build_model(head)
    world = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total = sum(len(client.train) for client in clients.values())
    best, best_loss = world, float("inf")
    for number in range(1, options.rounds + 2):  # the last pass only evaluates
        mean = {name: torch.zeros_like(tensor) for name, tensor in world.items()}
        losses = []
        for name, client in clients.items():
            model.load_state_dict(world)
            if number > 1:
                losses.append((evaluate(model, client.validation).loss, len(client.validation)))
            if number <= options.rounds:
                train(model, client.train, options, round_generator(SEED, name, number), "cpu")
                for key, tensor in model.state_dict().items():
                    mean[key] += tensor * (len(client.train) / total)
        if losses:
            loss = sum(value * count for value, count in losses) / sum(count for _, count in losses)
            if loss < best_loss:
                best, best_loss = world, loss
        world = mean
    return best


def by_engine(clients: dict[str, ClientData], head: str, options: TrainingOptions):
    sharing = Sharing.of(build_model(head))
    app = build_client_app(
        lambda context: clients[context.node_config["client"]], lambda: build_model(head), sharing, options, seed=SEED
    )
    tensors = {name: tensor.numpy() for name, tensor in build_model(head).state_dict().items()}
    with PeakMemory("cpu"):  # as around a cell
        return run_rounds(InProcessGrid(app, list(clients)), build_rule("fedavg"), tensors, options).tensors


def measure(function, *arguments):
    wall, processor = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return time.perf_counter() - wall, time.process_time() - processor, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", default=["linear", "conv_s"])
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the job that trains a cell does
    clients = synthetic_clients(arguments.scans, arguments.clients)
    options = TrainingOptions(rounds=arguments.rounds)
    missed = False
    print("head\thand_s\tengine_s\twall_ratio\tprocessor_ratio\tlargest_difference")
    for head in arguments.heads:
        by_engine(clients, head, TrainingOptions(rounds=1))  # imports and first calls are not what is compared
        hand, engine = [], []
        for repetition in range(arguments.repetitions):
            for times, function in [(hand, by_hand), (engine, by_engine)][:: 1 if repetition % 2 else -1]:
                times.append(measure(function, clients, head, options))
        wall, processor = (median(e[i] / h[i] for h, e in zip(hand, engine)) for i in (0, 1))
        difference = max(float(abs(hand[0][2][name].numpy() - tensor).max()) for name, tensor in engine[0][2].items())
        seconds = (median(times[0] for times in runs) for runs in (hand, engine))
        print(
            head, *(f"{value:.3f}" for value in (*seconds, wall, processor)), f"{difference:.1e}", sep="\t", flush=True
        )
        missed |= processor > TARGET
    print("target", "missed" if missed else "met", f"(processor ratio at most {TARGET})")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
