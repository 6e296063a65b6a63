"""A federation in this process with all its messages kept, ways to end it early, and to compare two of them."""

import numpy as np
from small_clients import build_small_model

from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.apps import build_client_app
from fedbrain.federated.grid import InProcessGrid
from fedbrain.federated.kept import Kept
from fedbrain.federated.rounds import run_rounds
from fedbrain.federated.sharing import Sharing, adapted_layers
from fedbrain.federated.task import TrainingOptions

SEED = 3
OPTIONS = TrainingOptions(rounds=4, batch_size=5, learning_rate=0.02)


class RecordingGrid(InProcessGrid):
    """Keeps every message that goes down and every reply that comes up; ``kept`` is what each client keeps for itself."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.down, self.up, self.kept = [], [], {}

    def push_messages(self, messages):
        messages = list(messages)
        self.down += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        self.up += replies
        return replies

    def trained(self):
        """The rounds in which each client was asked to train."""
        names = {node: context.node_config["client"] for node, context in self.contexts.items()}
        asked = [message for message in self.down if message.metadata.message_type == "train"]
        rounds = {name: [] for name in names.values()}
        for message in asked:
            rounds[names[message.metadata.dst_node_id]].append(message.content["config"]["round"])
        return rounds


def federate(
    clients,
    rule="fedavg",
    options=OPTIONS,
    *,
    sharing=None,
    build_model=build_small_model,
    load=None,
    names=None,
    folder=None,
    grid=RecordingGrid,
    **loop,
):
    """Runs a federation of ``clients``; (its result, the grid). What clients keep lies in ``folder``, or in memory."""
    rule = build_rule(rule) if isinstance(rule, str) else rule
    rule = rule.fitted(adapted_layers(build_model()))
    sharing = sharing or Sharing.of(build_model(), rule)
    load = load or (lambda context: clients[context.node_config["client"]])
    path = (lambda name: folder / f"{name}.safetensors") if folder else (lambda name: None)
    kept = {name: Kept(path(name), loop.get("identity", "")) for name in clients}
    app = build_client_app(load, build_model, sharing, options, rule=rule, seed=SEED, keep=kept.__getitem__)
    grid = grid(app, names or list(clients))
    grid.kept = kept
    state = build_model().state_dict()
    tensors = {name: state[name].numpy() for role in ("shared", "merged") for name in sharing.select(state, role)}
    return run_rounds(grid, rule, tensors, options, seed=SEED, **loop), grid


def failing(clients, name, calls_of_failure):
    """A loader that raises for one client in some of its calls; the first one (0) is the query."""
    calls = {"count": -1}

    def load(context):
        if context.node_config["client"] == name:
            calls["count"] += 1
            if calls["count"] in calls_of_failure:
                raise MemoryError("out of\nmemory")
        return clients[context.node_config["client"]]

    return load


def dying(monkeypatch, module, call, error):
    """Lets ``module.train`` raise ``error`` in one of its calls (from 1); the list that it returns grows with every call."""
    real, calls = module.train, []

    def train(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(module, "train", train)
    return calls


def as_bytes(tensors):
    return {name: np.asarray(tensor).tobytes() for name, tensor in tensors.items()}


def timeless(rows):
    """Rows of rounds.tsv without what is measured."""
    return [{**row, "seconds": 0, "peak_memory": 0} for row in rows]
