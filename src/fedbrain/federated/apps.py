"""The two Flower apps, thin around task, rounds and aggregation: the same in this process, under a SuperLink and on Ray.

What a client answers to:

    query       its name and its numbers of training and validation scans
    train       [evaluates the model that it received], trains it, replies with its shared tensors and the scalars
    evaluate    evaluates the model that it received

Each reply to the last two tells what it took: ``seconds`` from the message to the reply, and ``peak_memory`` in bytes
(fedbrain.federated.accounting).

No message carries a subject's id, an embedding or a score of one scan, nor a private tensor.
"""

import time
from collections.abc import Callable, Mapping
from functools import wraps

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor, nn

from fedbrain.federated.accounting import PeakMemory
from fedbrain.federated.aggregation.averages import FedAvg
from fedbrain.federated.aggregation.rule import AdaptedLayer, Rule, Tensors, filled_up, merge
from fedbrain.federated.arrays import to_record, view
from fedbrain.federated.data import ClientData
from fedbrain.federated.kept import Kept
from fedbrain.federated.kinds import named
from fedbrain.federated.local import Turn
from fedbrain.federated.rounds import Result, run_rounds
from fedbrain.federated.sharing import Sharing, adapted_layers
from fedbrain.federated.task import TrainingOptions, evaluate, fitting_batch, minus_model, round_generator

OF_BEST = ("private", "personal")  # what a client keeps of the best round, too
OF_ACCEPTED = ("memory",)  # what it keeps of the last round of which the server took its update


def build_client_app(
    load_client: Callable[[Context], ClientData],
    build_model: Callable[[], nn.Module],
    sharing: Sharing,
    options: TrainingOptions,
    *,
    rule: Rule | None = None,
    seed: int,
    device: str = "cpu",
    keep: Callable[[str], Kept] | None = None,
) -> ClientApp:
    """The ClientApp: ``load_client`` finds this node's scans (``context.node_config["client"]`` names the client).

    ``build_model`` must give the same model everywhere (seeded), since frozen tensors never travel. ``rule`` says how a client
    trains (left out: as under FedAvg). ``keep`` gives, by the client's name, what it keeps between rounds (left out: in
    memory), in these groups: ``private``, its private tensors; ``personal``, a model of its own beside the shared one;
    ``memory``, what the rule's local training remembers; ``local``, its shared tensors after its last training, where the
    rule asks for the minus score; ``merged``, weights that the server changes; ``fitting``, how many scans fit into memory,
    once they were too many.
    """
    app = ClientApp()
    model = build_model().to(device)
    rule = rule or FedAvg()
    local, layers = rule.local(), adapted_layers(model) if rule.merged else {}
    own_models = rule.own_model == "rounds"  # trained, and judged, in every round
    fitting = fitting_batch(options)
    whole = fitting.size
    shared, private, merged = (sharing.select(model.state_dict(), role) for role in ("shared", "private", "merged"))
    # One model serves all clients of a process: who has not trained yet starts from the initial tensors.
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in {*private, *merged}}
    in_memory: dict[str, Kept] = {}

    def kept_by(client: str) -> Kept:
        return keep(client) if keep else in_memory.setdefault(client, Kept())

    def receive(message: Message, client: str, past: int) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Loads the model as it stands after round ``past``: (the shared tensors, what the client kept by then)."""
        own = {
            group: {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
            for group, arrays in kept_by(client).after(past).items()
        }
        received = message.content["arrays"]
        if sorted(set(received) - set(merged)) != sorted(shared):
            raise ValueError(
                "the server's model has other shared tensors than this client's: different head or tuning?"
            )
        # Each client's own, so that a run that goes on sums the same parts of a batch as one that was never stopped.
        fitting.size = int(own["fitting"]["size"]) if "fitting" in own else whole
        state = model.state_dict()
        # A tensor that comes smaller than the model's is an adapter of lower rank.
        arrays = {name: filled_up(np.array(view(array)), state[name].shape) for name, array in received.items()}
        received = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        base = {name: initial[name] for name in merged} | own.get("merged", {})
        if "merge" in message.content:
            if "merged" not in own:
                raise ValueError("what the server changed in the frozen weights before is not on this client any more")
            base = merge_factors(base, message.content["merge"], layers)
        model.load_state_dict(initial | own.get("private", {}) | base | received, strict=False)
        return {name: received[name] for name in shared}, own

    def validation(client: ClientData, own: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
        """The values of what the client would use now: its own model, if it has one, else the one that was loaded.

        There are none where what should be its own has not been trained yet.
        """
        if (private or own_models) and not set(OF_BEST) & set(own):
            return {}
        if "personal" in own:
            received = {name: tensor.clone() for name, tensor in own_tensors(shared).items()}
            model.load_state_dict(own["personal"], strict=False)
        evaluation = evaluate(model, client.validation, options, fitting)
        if "personal" in own:
            model.load_state_dict(received, strict=False)
        if evaluation is None:
            return {}
        return {"validation_loss": evaluation.loss, "validation_score": evaluation.balanced_accuracy}

    def own_tensors(names: list[str]) -> dict[str, Tensor]:
        tensors = model.state_dict() if names else {}
        return {name: tensors[name] for name in names}

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        client = load_client(context)
        record = {"client": client.name, "train": len(client.train), "validation": len(client.validation)}
        return Message(RecordDict({"client": ConfigRecord(record)}), reply_to=message)

    @app.train()
    @_measured(device)
    def train_round(message: Message, context: Context) -> Message:
        config = message.content["config"]
        number, client = config["round"], load_client(context)
        received, own = receive(message, client.name, number - 1)
        # What the server refused, or took for late, has no part in the model, so the rule's memory of it must not count either.
        remembered = kept_by(client.name).after(min(config["accepted"], number - 1)).get("memory", {})
        metrics = validation(client, own) if config["evaluate"] else {}
        # W has p_k of this client's part only if the server took it in the very round before.
        in_model = config["accepted"] == number - 1 and "local" in own
        if "minus_score" in config["needs"] and in_model and config["weight"] < 1:
            model.load_state_dict(minus_model(received, own["local"], config["weight"]), strict=False)
            if minus := evaluate(model, client.validation, options, fitting):
                metrics["minus_score"] = minus.balanced_accuracy
            model.load_state_dict(received, strict=False)

        if "received_loss" in config["needs"]:
            metrics["received_loss"] = evaluate(model, client.train, options, fitting).loss

        resting = named(rule.resting(number), shared)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(sharing.role(name) in ("shared", "private") and name not in resting)
        turn = Turn(
            round=number,
            model=model,
            samples=client.train,
            options=options.of_round(number),
            generator=round_generator(seed, client.name, number),
            device=device,
            fitting=fitting,
            private=tuple(private),
            received=received,
            beside=to_tensors(message.content["beside"], device) if "beside" in message.content else {},
            kept={name: torch.from_numpy(array).to(device) for name, array in remembered.items()},
            personal=own.get("personal", {}),
        )
        metrics["loss"] = local.train(turn)

        if "local_score" in config["needs"] and (scored := evaluate(model, client.validation, options, fitting)):
            metrics["local_score"] = scored.balanced_accuracy
        after = own_tensors(shared)
        sent = {
            name: after[name][tuple(map(slice, message.content["arrays"][name].shape))]
            for name in shared
            if name not in resting
        }
        arrays = to_record(in_numpy(sent))
        content = {"arrays": arrays}
        if turn.send:
            content["beside"] = to_record(in_numpy(turn.send))
        groups = {"private": own_tensors(private), "merged": own_tensors(merged), "memory": turn.keep}
        if "minus_score" in config["needs"]:
            groups["local"] = after
        if fitting.size < whole:
            groups["fitting"] = {"size": torch.tensor(fitting.size)}
        groups = {group: to_arrays(tensors) for group, tensors in groups.items() if tensors}
        if own_models:
            groups["personal"] = to_arrays(local.train_personal(turn))
        if groups:
            kept_by(client.name).keep(
                number,
                groups,
                best=config["best"],
                of_best=OF_BEST,
                accepted=config["accepted"],
                of_accepted=OF_ACCEPTED,
            )
        metrics["scans"] = len(client.train)
        return Message(RecordDict(content | {"metrics": MetricRecord(metrics)}), reply_to=message)

    @app.evaluate()
    @_measured(device)
    def evaluate_round(message: Message, context: Context) -> Message:
        client = load_client(context)
        _, own = receive(message, client.name, message.content["config"]["round"])
        metrics = validation(client, own) | {"scans": len(client.train)}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return app


def build_server_app(
    rule: Rule,
    tensors: Tensors,
    options: TrainingOptions,
    finish: Callable[[Result], None],
    **loop,
) -> ServerApp:
    """The ServerApp: runs the rounds over whatever grid it is given and hands their result to ``finish``.

    ``loop`` goes to :func:`fedbrain.federated.rounds.run_rounds` (seed, checkpoint).
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        finish(run_rounds(grid, rule, tensors, options, **loop))

    return app


def _measured(device: str):
    """Decorator of a handler of messages: its reply tells the seconds and the memory that it took."""

    def decorate(handler: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
        @wraps(handler)
        def measured(message: Message, context: Context) -> Message:
            start = time.perf_counter()
            with PeakMemory(device) as peak:
                reply = handler(message, context)
            metrics = reply.content["metrics"]
            metrics["seconds"], metrics["peak_memory"] = time.perf_counter() - start, peak.bytes
            return reply

        return measured

    return decorate


def to_tensors(record: ArrayRecord, device: str) -> dict[str, Tensor]:
    """The arrays of a record as tensors on ``device``."""
    return {name: torch.from_numpy(np.array(view(array))).to(device) for name, array in record.items()}


def in_numpy(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays; on the CPU the memory is the same."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays of their own."""
    return {name: array.copy() for name, array in in_numpy(tensors).items()}


def merge_factors(
    base: Mapping[str, Tensor], factors: ArrayRecord, layers: Mapping[str, AdaptedLayer]
) -> dict[str, Tensor]:
    """The weights ``base`` after the products that the server sent as pairs of factors have been added to them."""
    result = {name: tensor.detach().cpu().numpy() for name, tensor in base.items()}
    for a_name, layer in layers.items():
        if a_name in factors:
            a, b = view(factors[a_name]), view(factors[layer.b])
            result[layer.weight] = merge(result[layer.weight], layer.rows, a, b)
    return {name: torch.from_numpy(result[name]).to(base[name].device) for name in base}
