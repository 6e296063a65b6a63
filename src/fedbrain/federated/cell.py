"""One cell of the study with one seed: head / tuning / aggregation, trained, chosen by validation, applied to the test scans.

``centralized`` (all scans pooled) and ``local`` (each client alone) stand in the aggregation's place and are trained by the
same code for the same number of epochs.
"""

import copy
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file
from torch import nn

from fedbrain.devices import be_repeatable, compiles
from fedbrain.errors import StudyError
from fedbrain.federated.accounting import PeakMemory
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.aggregation.rule import State
from fedbrain.federated.checkpoint import Best, Checkpoint, load_checkpoint, save_checkpoint
from fedbrain.federated.data import SIDES, ClientData, pool_clients
from fedbrain.federated.sharing import Sharing
from fedbrain.federated.task import (
    TrainingOptions,
    derive_seed,
    describe_choice,
    evaluate,
    fitting_batch,
    is_better,
    train_alone,
)
from fedbrain.models.cards import CARDS
from fedbrain.models.classifier import EncoderSource, build_classifier
from fedbrain.models.operations import cost_of
from fedbrain.models.tuning import VOLUME, Tuning
from fedbrain.models.weights import weights_identity
from fedbrain.provenance import digest, versions
from fedbrain.registry import REFERENCES, build
from fedbrain.tables import PREDICTIONS, ROUNDS, write_table, write_text, written_atomically

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Trained:
    """What training gives: the model for each client (the same one, but for ``local``), and how it was chosen."""

    models: Mapping[str, Mapping[str, np.ndarray]]  # by the client that it is applied to
    best_round: Mapping[str, int]  # by "global", "pooled" or client
    reason: Mapping[str, str]
    rows: list[dict]


def train_cell(
    clients: Mapping[str, ClientData],
    *,
    head: str,
    tuning: str,
    aggregation: str,
    head_options: Mapping | None = None,
    tuning_options: Mapping | None = None,
    aggregation_options: Mapping | None = None,
    training: Mapping | TrainingOptions | None = None,
    source: EncoderSource | None = None,
    seed: int = 0,
    folder: str | Path,
    device: str = "cpu",
    code: str = "",
) -> dict:
    """Trains one cell and writes its results into ``folder``; returns the summary.

    Writes ``rounds.tsv`` (tables.ROUNDS), ``predictions.tsv`` (tables.PREDICTIONS: every test scan, its score by the model of
    the best round), ``predictions_validation.tsv`` (the same of every validation scan, from which a threshold may be chosen),
    ``model.safetensors`` (what that model has trained; for ``local`` each client's, names prefixed
    ``{client}/``) and ``summary.json``. Nothing of the test scans has any part in training or in the choice of the round.

    ``clients`` hold what the tuning starts from (``Tuning.cut``): embeddings, tokens or volumes. ``source`` is the encoder that
    they come from; it is loaded where some of it is trained.

    A run keeps a checkpoint in ``folder`` while it lasts and goes on from it when it was killed, provided that nothing has
    changed: options, seed, encoder, each client's scans, their sides, labels and embeddings, versions, and ``code``,
    a digest of the code that trains (left out: changes of the code are not noticed). Clients without training scans do not
    train; a model from the others is still applied to their test scans. Same inputs, seed and machine give the same bytes
    in all but the measured seconds and memory.

    Raises StudyError for unknown names or options and where no client has training scans; ClientFailure if a client fails.
    """
    start = time.perf_counter()
    folder = Path(folder)
    options = TrainingOptions.of(training or {})
    given = {"head": head_options, "tuning": tuning_options, "aggregation": aggregation_options}
    given = {axis: dict(value or {}) for axis, value in given.items()}
    if aggregation in REFERENCES and given["aggregation"]:
        raise StudyError(f"aggregation {aggregation} takes no options, it was given {', '.join(given['aggregation'])}")
    rule = None if aggregation in REFERENCES else build_rule(aggregation, **given["aggregation"])
    training_clients = [client for client in clients if len(clients[client].train)]
    if not training_clients:
        raise StudyError("no client has training scans; see the split and results/volumes/*/*.tsv")
    be_repeatable(device, deterministic=options.deterministic)

    compiled = options.compile and compiles(device)
    source = source or EncoderSource()
    tuned: Tuning = build("tuning", tuning, given["tuning"])
    model = build_classifier(
        head, tuned, head_options=given["head"], source=source, seed=derive_seed(seed, "model", head)
    )
    frozen = {id(tensor): tensor for tensor in model.parameters() if not tensor.requires_grad}

    def build_model() -> nn.Module:
        # Copies share what is frozen: it never changes, and may be most of the memory.
        copied = copy.deepcopy(model, dict(frozen))
        if compiled:
            copied.compile(dynamic=False)  # with shapes left open, it fails on the strided convolutions
        return copied

    origin = next(iter(clients.values())).origin
    weights = origin.get("weights")
    if model.encoder is not None:
        path = None if tuned.weights == "random" else source.weights
        weights = weights_identity(path, seed=source.seed, card=CARDS[source.name])
        _require_same_encoder(clients, model.cut, weights)
    elif model.cut == VOLUME:
        weights = "none (trained from scratch)"
    cell = {"head": head, "tuning": tuning, "aggregation": aggregation}
    inputs = {
        "cell": cell,
        "options": given,
        "cut": model.cut,
        "weights": weights,
        "training": options.as_dict(),
        "seed": seed,
    }
    logger.info("cell %s/%s/%s, seed %d, %d clients, on %s", *cell.values(), seed, len(training_clients), device)

    clients = dict(sorted(clients.items()))
    seen = {name: client.without_test() for name, client in clients.items()}
    packages = versions("torch", "peft", "monai")
    identity = digest([inputs, code, packages, [_identity(client) for client in clients.values()]])
    with PeakMemory(device) as peak:
        if aggregation == "centralized":
            trained = _train_centralized(seen, build_model, options, seed, device, folder, identity)
        elif aggregation == "local":
            trained = _train_local(_members(seen, device), build_model, options, seed, device, folder, identity)
        else:
            trained = _train_federated(
                clients, _members(seen, device), model, build_model, rule, options, seed, device, folder, identity
            )

    write_table(pd.DataFrame(trained.rows, columns=list(ROUNDS)).astype(ROUNDS), folder / "rounds.tsv")
    for side, name in (("validation", "predictions_validation.tsv"), ("test", "predictions.tsv")):
        write_table(predict(clients, trained.models, build_model, options, device, side=side), folder / name)
    _write_model(trained, folder / "model.safetensors", local=aggregation == "local")
    summary = inputs | {
        "best_round": dict(trained.best_round),
        "reason": dict(trained.reason),
        **cost_of(model, source),
        "bytes_down": sum(row["bytes_down"] for row in trained.rows),
        "bytes_up": sum(row["bytes_up"] for row in trained.rows),
        "seconds": round(time.perf_counter() - start, 3),
        "peak_memory": peak.bytes,
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu",
        "encoder": origin.get("encoder"),
        "clients": {name: _counts(client) for name, client in clients.items()},
        "warnings": _warnings(clients, aggregation),
        "versions": versions("torch", "flwr", "peft", "monai", "numpy", "safetensors"),
    }
    write_text(json.dumps(summary, indent=2) + "\n", folder / "summary.json")
    for path in folder.glob(f"*{CHECKPOINT}"):
        path.unlink()
    return summary


def predict(
    clients: Mapping[str, ClientData],
    models: Mapping[str, Mapping[str, np.ndarray]],
    build_model: Callable[[], nn.Module],
    options: TrainingOptions,
    device: str,
    *,
    side: str = "test",
) -> pd.DataFrame:
    """The table of predictions: every scan of one side of the clients that have a model, by cohort and scan id."""
    model = build_model().to(device)
    parts = []
    for name, client in sorted(clients.items()):
        scans = getattr(client, side)
        if name not in models or not len(scans):
            continue
        model.load_state_dict({key: torch.as_tensor(array) for key, array in models[name].items()}, strict=False)
        scores = evaluate(model, scans.to(device), options).scores
        part = {"cohort": name, "subject": scans.subjects, "session": scans.sessions}
        part |= {"label": scans.y.cpu().numpy(), "score": scores}
        parts.append(pd.DataFrame(part))
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(PREDICTIONS))
    return table.astype(PREDICTIONS)


def _train_federated(clients, members, model, build_model, rule, options, seed, device, folder, identity) -> Trained:
    """The rounds over all members, from the tensors of ``model``, which stays as it is."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is first imported
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    os.environ["FLWR_HOME"] = str(folder / "flwr")
    from flwr.app import Context, RecordDict

    from fedbrain.federated.apps import build_client_app, build_server_app
    from fedbrain.federated.grid import InProcessGrid

    sharing, tensors = Sharing.of(model), model.state_dict()
    if sharing.select(tensors, "private"):
        # A client keeps its latest private tensors, not yet those of the round that turns out to be the best.
        raise NotImplementedError("predictions of a tuning with private tensors")
    shared = {name: tensors[name].numpy() for name in sharing.select(tensors, "shared")}
    client_app = build_client_app(
        lambda context: members[context.node_config["client"]], build_model, sharing, options, seed=seed, device=device
    )
    results = []
    server_app = build_server_app(
        rule, shared, options, results.append, checkpoint=folder / CHECKPOINT, identity=identity
    )
    grid = InProcessGrid(client_app, list(members))
    server_app(grid, Context(grid.run.run_id, 0, {}, RecordDict(), {}))
    (result,) = results
    models = dict.fromkeys(clients, result.tensors)
    return Trained(models, {"global": result.best_round}, {"global": result.reason}, result.rows)


def _members(clients: Mapping[str, ClientData], device: str) -> dict[str, ClientData]:
    """The clients that train, resident on ``device``."""
    return {name: client.to(device) for name, client in clients.items() if len(client.train)}


def _train_local(members, build_model, options, seed, device, folder, identity) -> Trained:
    """Each client alone, its best round by its own validation scans."""
    models, best_round, reason, rows = {}, {}, {}, []
    for name, client in members.items():
        path = folder / f"{name}-{CHECKPOINT}"
        models[name], best_round[name], reason[name], new_rows = _train_one(
            client, build_model, options, seed, device, path, identity
        )
        rows += new_rows
    rows.sort(key=lambda row: row["round"])  # stable: clients stay in order within a round
    return Trained(models, best_round, reason, rows)


def _train_centralized(clients, build_model, options, seed, device, folder, identity) -> Trained:
    """All scans as one client."""
    pooled = pool_clients(list(clients.values())).to(device)
    tensors, best_round, reason, rows = _train_one(
        pooled, build_model, options, seed, device, folder / CHECKPOINT, identity
    )
    return Trained(dict.fromkeys(clients, tensors), {pooled.name: best_round}, {pooled.name: reason}, rows)


def _train_one(client: ClientData, build_model, options: TrainingOptions, seed: int, device: str, path, identity):
    """One client without any exchange: (tensors of its best round, that round, why, rows of rounds.tsv)."""
    model, fitting = build_model().to(device), fitting_batch(options)
    best, rows, last = None, [], 0
    if past := load_checkpoint(path, identity):
        best, rows, last, tensors = past.best, past.rows, past.state.round, past.state.tensors
        fitting.size = past.state.memory["fitting"]
        model.load_state_dict({name: torch.as_tensor(array) for name, array in tensors.items()}, strict=False)
        logger.info("%s goes on after round %d of %d", client.name, last, options.rounds)
    start = time.perf_counter()
    for done in train_alone(model, client, options, seed, device, done=last, fitting=fitting):
        end = time.perf_counter()
        row = {
            "round": done.round,
            "client": client.name,
            "status": "ok",
            "scans": len(client.train),
            "loss": done.loss,
        }
        row |= {"bytes_down": 0, "bytes_up": 0, "seconds": end - start}
        value = None
        if done.validation:
            row |= {"validation_loss": done.validation.loss, "validation_score": done.validation.balanced_accuracy}
            value = row["validation_loss" if options.selection == "loss" else "validation_score"]
        last, tensors = done.round, {name: tensor.numpy() for name, tensor in done.tensors.items()}
        if is_better(value, best and best.value, options.selection):
            best = Best(done.round, value, tensors)
        rows.append(row)
        state = State(last, tensors, memory={"fitting": fitting.size})
        save_checkpoint(Checkpoint(state, best, rows, {}), path, identity)
        start = time.perf_counter()
    if best is None:
        return tensors, last, "no validation scans: the last round", rows
    return best.tensors, best.round, describe_choice(options.selection, best.value), rows


def _write_model(trained: Trained, path: Path, *, local: bool) -> None:
    if local:
        arrays = {
            f"{client}/{name}": array for client, model in trained.models.items() for name, array in model.items()
        }
    else:
        arrays = next(iter(trained.models.values()))
    with written_atomically(path) as temporary:
        save_file({name: np.array(array, order="C") for name, array in sorted(arrays.items())}, temporary)


def _require_same_encoder(clients: Mapping[str, ClientData], cut: str, weights: str) -> None:
    """What was kept of the scans must come from the encoder that goes on from there. Raises StudyError."""
    for name, client in clients.items():
        found = (client.origin.get("cut"), client.origin.get("weights"))
        if cut != VOLUME and found != (cut, weights):
            raise StudyError(
                f"cohort {name}: its tokens are of {found[0]} with weights {found[1]}, training goes on at {cut} with weights "
                f"{weights}; was the checkpoint replaced while the workflow ran? Run it again"
            )


def _identity(client: ClientData) -> dict:
    """What a checkpoint's run learned from, and from whom: with other sides it would have seen what is now tested."""
    sides = {side: {"scans": part.scans, "labels": part.y.tolist()} for side, part in zip(SIDES, _sides(client))}
    origin = {"fingerprint": client.fingerprint, "origin": dict(client.origin)}
    return {"name": client.name} | origin | sides


def _sides(client: ClientData):
    return [getattr(client, side) for side in SIDES]


def _counts(client: ClientData) -> dict:
    counts = {side: dict(zip(("controls", "cases"), part.counts())) for side, part in zip(SIDES, _sides(client))}
    return counts | {"absent": client.absent}


def _warnings(clients: Mapping[str, ClientData], aggregation: str) -> list[str]:
    """What a reader of the result must know of the data, in words."""
    texts = []
    for name, client in sorted(clients.items()):
        if client.absent:
            texts.append(
                f"{name}: {client.absent} scan(s) without an embedding take no part (failed in an earlier stage)"
            )
        for side, part in zip(SIDES, _sides(client)):
            controls, cases = part.counts()
            if not len(part):
                consequence = {
                    "train": "no model of its own, no predictions" if aggregation == "local" else "does not train",
                    "validation": "no part in the choice of the round",
                    "test": "no predictions",
                }[side]
                texts.append(f"{name}: no {side} scans: {consequence}")
            elif not (controls and cases):
                texts.append(f"{name}: {side} scans of one class only ({controls} controls, {cases} cases)")
    return texts
