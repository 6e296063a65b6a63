"""The two Flower apps, thin around task, rounds and aggregation: the same in this process, under a SuperLink and on Ray.

What a client answers to:

    query       its name and its numbers of training and validation scans
    train       [evaluates the model that it received], trains it, replies with its shared tensors and the scalars
    evaluate    evaluates the model that it received

No message carries a subject's id, an embedding or a score of one scan.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor, nn

from fedbrain.federated.aggregation.rule import Rule, Tensors
from fedbrain.federated.data import ClientData
from fedbrain.federated.rounds import Result, run_rounds
from fedbrain.federated.sharing import Sharing
from fedbrain.federated.task import TrainingOptions, evaluate, fitting_batch, minus_model, round_generator, train


def build_client_app(
    load_client: Callable[[Context], ClientData],
    build_model: Callable[[], nn.Module],
    sharing: Sharing,
    options: TrainingOptions,
    *,
    seed: int,
    device: str = "cpu",
) -> ClientApp:
    """The ClientApp: ``load_client`` finds this node's scans (``context.node_config["client"]`` names the client).

    ``build_model`` must give the same model everywhere (seeded), since frozen tensors never travel. Between rounds a client
    keeps in ``context.state``, by name: ``private``, its private tensors; ``local``, its shared tensors after its last
    training, where the rule asks for the minus score; ``fitting``, how many scans fit into memory, once they were too many.
    """
    app = ClientApp()
    model = build_model().to(device)
    fitting = fitting_batch(options)
    whole = fitting.size
    shared, private = (sharing.select(model.state_dict(), role) for role in ("shared", "private"))
    # One model serves all clients of a process: who has not trained yet starts from the initial private tensors.
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in private}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(sharing.role(name) != "frozen")

    def receive(message: Message, context: Context) -> tuple[ClientData, dict[str, Tensor]]:
        received = to_tensors(message.content["arrays"], device)
        if sorted(received) != sorted(shared):
            raise ValueError(
                "the server's model has other shared tensors than this client's: different head or tuning?"
            )
        # Each client's own, so that a run that goes on sums the same parts of a batch as one that was never stopped.
        fitting.size = int(context.state["fitting"]["size"].numpy()) if "fitting" in context.state else whole
        own = to_tensors(context.state["private"], device) if "private" in context.state else {}
        model.load_state_dict(initial | own | received, strict=False)
        return load_client(context), received

    def validation(client: ClientData) -> dict[str, float]:
        if evaluation := evaluate(model, client.validation, options, fitting):
            return {"validation_loss": evaluation.loss, "validation_score": evaluation.balanced_accuracy}
        return {}

    def own_tensors(names: list[str]) -> ArrayRecord:
        tensors = model.state_dict()
        return ArrayRecord({name: tensors[name] for name in names})

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        client = load_client(context)
        record = {"client": client.name, "train": len(client.train), "validation": len(client.validation)}
        return Message(RecordDict({"client": ConfigRecord(record)}), reply_to=message)

    @app.train()
    def train_round(message: Message, context: Context) -> Message:
        start = time.perf_counter()
        config = message.content["config"]
        client, received = receive(message, context)
        metrics = validation(client) if config["evaluate"] else {}
        if "minus_score" in config["needs"] and "local" in context.state and config["weight"] < 1:
            before = to_tensors(context.state["local"], device)
            model.load_state_dict(minus_model(received, before, config["weight"]), strict=False)
            if minus := evaluate(model, client.validation, options, fitting):
                metrics["minus_score"] = minus.balanced_accuracy
            model.load_state_dict(received, strict=False)

        generator = round_generator(seed, client.name, config["round"])
        metrics["loss"] = train(model, client.train, options, generator, device, fitting)

        if "local_score" in config["needs"] and (local := evaluate(model, client.validation, options, fitting)):
            metrics["local_score"] = local.balanced_accuracy
        arrays = own_tensors(shared)
        if fitting.size < whole:
            context.state["fitting"] = ArrayRecord({"size": Array(np.array(fitting.size))})
        if private:
            context.state["private"] = own_tensors(private)
        if "minus_score" in config["needs"]:
            context.state["local"] = arrays
        metrics |= {"scans": len(client.train), "seconds": time.perf_counter() - start}
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message)

    @app.evaluate()
    def evaluate_round(message: Message, context: Context) -> Message:
        start = time.perf_counter()
        client, _ = receive(message, context)
        metrics = validation(client)
        metrics |= {"scans": len(client.train), "seconds": time.perf_counter() - start}
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

    ``loop`` goes to :func:`fedbrain.federated.rounds.run_rounds` (quorum, deadline, checkpoint).
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        finish(run_rounds(grid, rule, tensors, options, **loop))

    return app


def to_tensors(record: ArrayRecord, device: str) -> dict[str, Tensor]:
    """The arrays of a record as tensors on ``device``."""
    return {name: torch.from_numpy(array.numpy()).to(device) for name, array in record.items()}
