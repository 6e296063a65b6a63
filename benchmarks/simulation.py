"""What the rounds cost beyond the training itself: in this process, and by Flower's simulation on Ray, with the very same two apps.

    pip install -e ".[simulation]"
    python benchmarks/simulation.py [--clients 10] [--rounds 10] [--repetitions 3]

A model of 1 M parameters, a batch of four scans a client: training is next to nothing, so that what is left is messages, calls and
aggregation. In turns: a loop written by hand, fedbrain's grid in this process, ``flwr.simulation.run_simulation`` with its Ray
backend, one client after the other as in the two other ways (and with one CPU a client, which takes the time of training off what Ray costs:
``on Ray, parallel``). The overhead is the wall time beyond the loop by hand (Ray works in processes of its own, so
processor time of this one says nothing of it): of the whole run with start and end, and without them, which are the rounds from the
second on, since Ray's workers start in the first. Ray is asked for replies every 10 ms, where Flower itself asks ten times a second.
Median of the repetitions. The target is a ratio of the overheads of at least 30. One thread a process.
"""

import argparse
import os
import sys
import tempfile
import time
from functools import cache, partial
from importlib.util import find_spec
from statistics import median

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from torch import nn

from fedbrain.devices import keep_freed_memory
from fedbrain.federated import rounds
from fedbrain.federated.accounting import PeakMemory
from fedbrain.federated.aggregation.averages import FedAvg
from fedbrain.federated.apps import build_client_app, build_server_app
from fedbrain.federated.data import ClientData, Samples
from fedbrain.federated.grid import InProcessGrid
from fedbrain.federated.sharing import Sharing
from fedbrain.federated.task import TrainingOptions, round_generator, train

SEED, SCANS, FEATURES, WIDTH = 0, 4, 64, 15_000
TARGET = 30
MISSING = (
    'Ray is not installed, so there is nothing to compare with: pip install -e ".[simulation]" and run this again.'
)


def build_model() -> nn.Module:
    """1,005,002 parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))


def name_of(number: int) -> str:
    return f"client{number:02d}"


@cache
def client(name: str) -> ClientData:
    x = torch.randn(SCANS, FEATURES, generator=torch.Generator().manual_seed(len(name)))
    ids = tuple(f"{name}-{number}" for number in range(SCANS))
    samples = Samples(x, torch.arange(SCANS) % 2, ids, (None,) * SCANS, ids)
    nobody = Samples(x[:0], torch.arange(0), (), (), ())
    return ClientData(name, samples, nobody, nobody)


def load_client(context: Context) -> ClientData:
    config = context.node_config  # Ray numbers its nodes
    return client(config["client"] if "client" in config else name_of(config["partition-id"]))


@cache  # once a process: what travels to Ray's workers is a name
def inner_app() -> ClientApp:
    keep_freed_memory()  # as the job that trains a cell does
    torch.set_num_threads(1)
    return build_client_app(load_client, build_model, Sharing.of(build_model()), TrainingOptions(), seed=SEED)


def handle(message: Message, context: Context) -> Message:
    return inner_app()(message, context)


def client_app() -> ClientApp:
    app = ClientApp()
    for kind in (app.query, app.train, app.evaluate):
        kind()(handle)
    return app


def timed_server_app(clients: int, number: int, starts: list[float], results: list) -> ServerApp:
    """The ServerApp; ``starts`` takes the time at which each round began, and the end of the last one."""

    class Timed(FedAvg):
        def beside(self, state):  # the first thing that a round asks its rule for
            starts.append(time.perf_counter())
            return super().beside(state)

    tensors = {name: tensor.numpy() for name, tensor in build_model().state_dict().items()}
    return build_server_app(Timed(), tensors, TrainingOptions(rounds=number), results.append, expected=clients)


def by_hand(clients: int, number: int) -> tuple[float, float]:
    """Seconds: of all, and of the rounds from the second on."""
    start, starts, model = time.perf_counter(), [], build_model()
    world = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for round in range(1, number + 1):
        starts.append(time.perf_counter())
        mean = {name: torch.zeros_like(tensor) for name, tensor in world.items()}
        for name in map(name_of, range(clients)):
            model.load_state_dict(world)
            train(model, client(name).train, TrainingOptions(), round_generator(SEED, name, round), "cpu")
            for key, tensor in model.state_dict().items():
                mean[key] += tensor / clients
        world = mean
    end = time.perf_counter()
    return end - start, end - starts[1]


def by_process(clients: int, number: int) -> tuple[float, float]:
    start, starts, results = time.perf_counter(), [], []
    grid = InProcessGrid(client_app(), [name_of(k) for k in range(clients)])
    with PeakMemory("cpu"):  # as around a cell
        timed_server_app(clients, number, starts, results)(grid, Context(grid.run.run_id, 0, {}, RecordDict(), {}))
    return _checked(results, clients, number, start, starts)


def by_ray(clients: int, number: int, processors: int = 1) -> tuple[float, float]:
    from flwr.simulation import run_simulation

    rounds.POLL, results, starts = 0.01, [], []
    start = time.perf_counter()
    resources = {"client_resources": {"num_cpus": processors, "num_gpus": 0.0}}
    run_simulation(timed_server_app(clients, number, starts, results), client_app(), clients, backend_config=resources)
    return _checked(results, clients, number, start, starts)


def _checked(results: list, clients: int, number: int, start: float, starts: list[float]) -> tuple[float, float]:
    end = time.perf_counter()
    (result,) = results
    done = sum(row["status"] == "ok" for row in result.rows)
    if done != clients * number:
        raise RuntimeError(f"{done} of {clients * number} turns were done")
    return end - start, starts[-1] - starts[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    if find_spec("ray") is None:
        print(MISSING)
        return 2
    keep_freed_memory()
    torch.set_num_threads(1)
    one_by_one = partial(by_ray, processors=os.cpu_count())
    ways = {"by hand": by_hand, "in this process": by_process, "on Ray": one_by_one, "on Ray, parallel": by_ray}
    seconds = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FLWR_HOME"] = folder
        by_hand(2, 2), by_process(2, 2)  # imports and first calls are not what is compared
        for _ in range(arguments.repetitions):
            for way, run in ways.items():
                seconds[way].append(run(arguments.clients, arguments.rounds))
    print("way\twhole_s\toverhead_s\tlater_rounds_s\toverhead_s")
    beyond = {}
    for way, times in seconds.items():
        both = [median(t[part] for t in times) for part in (0, 1)]
        beyond[way] = [median(t[part] - h[part] for t, h in zip(times, seconds["by hand"])) for part in (0, 1)]
        print(way, *(f"{value:.3f}" for pair in zip(both, beyond[way]) for value in pair), sep="\t")
    missed = False
    for way in ("on Ray", "on Ray, parallel"):
        ratios = [there / here for there, here in zip(beyond[way], beyond["in this process"])]
        print(f"overhead {way} over that in this process: {ratios[0]:.0f} with start and end, {ratios[1]:.1f} without")
        for what, ratio in zip(("with start and end", "without start and end"), ratios):
            print(f"    target {'met' if ratio >= TARGET else 'missed'} {what} (at least {TARGET})")
        missed |= ratios[0] < TARGET
    return int(missed)


if __name__ == "__main__":
    # As a module of that name, so that Ray's workers find its functions by name.
    import simulation

    sys.exit(simulation.main())
