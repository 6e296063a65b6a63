"""One cell of the study with one seed: head / tuning / aggregation, trained, chosen by validation, applied to the test scans.

``centralized`` (all scans pooled) and ``local`` (each client alone) stand in the aggregation's place and are trained by the
same code for the same number of epochs.
"""

import copy
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from fedbrain.federated.aggregation.rule import State, filled_up
from fedbrain.federated.checkpoint import Best, Checkpoint, load_checkpoint, save_checkpoint
from fedbrain.federated.data import SIDES, ClientData, pool_clients
from fedbrain.federated.kept import Kept
from fedbrain.federated.local import Turn
from fedbrain.federated.sharing import Sharing, adapted_layers
from fedbrain.federated.task import (
    TrainingOptions,
    derive_seed,
    describe_choice,
    evaluate,
    fitting_batch,
    is_better,
    lost_patience,
    round_generator,
    train_alone,
)
from fedbrain.models.cards import CARDS
from fedbrain.models.classifier import EncoderSource, build_classifier
from fedbrain.models.operations import cost_of
from fedbrain.models.tuning import VOLUME, Tuning
from fedbrain.models.weights import weights_identity
from fedbrain.provenance import digest, versions
from fedbrain.registry import REFERENCES, build
from fedbrain.tables import PREDICTIONS, ROUNDS, RUN_RESULTS, write_table, write_text, written_atomically

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
CLIENTS = "clients"  # the folder of what each client keeps for itself between rounds


@dataclass(frozen=True)
class Trained:
    """What training gives: the model for each client, and how it was chosen."""

    models: Mapping[str, Mapping[str, np.ndarray]]  # by the client that it is applied to
    common: Mapping[str, np.ndarray]  # the tensors that are the same for all
    own: Mapping[str, Mapping[str, np.ndarray]]  # those that each client has for itself
    best_round: Mapping[str, int]  # by "global", "pooled" or client
    reason: Mapping[str, str]
    rows: list[dict]
    untrained: Sequence[str] = ()  # clients that take part, but had trained nothing of their own by the best round
    global_model: Mapping[str, np.ndarray] | None = None  # for all clients, where they have own ones, too


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
    ``predictions_global.tsv`` and ``predictions_global_validation.tsv`` (where clients have models of their own: the same by the
    global model of that round, for every client; empty where there is none, ``Rule.has_global_model``),
    ``model.safetensors`` (what that model has trained; what each client has for itself, for ``local`` everything, has names
    prefixed ``{client}/``) and ``summary.json``. Nothing of the test scans has any part in training or in the choice of the round.

    ``clients`` hold what the tuning starts from (``Tuning.cut``): embeddings, tokens or volumes. ``source`` is the encoder that
    they come from; it is loaded where some of it is trained.

    A run keeps a checkpoint in ``folder`` while it lasts, and what each client keeps for itself in ``folder/clients``; it goes
    on from them when it was killed, provided that nothing has
    changed: options, seed, encoder, each client's scans, their sides, labels and embeddings, versions, and ``code``,
    a digest of the code that trains (left out: changes of the code are not noticed). Clients without training scans do not
    train; a model from the others is still applied to their test scans. Same inputs, seed and machine give the same bytes
    in all but the measured seconds and memory.

    A run that stands in ``folder`` whole, made from the same inputs in the same way, is not made again.

    Raises StudyError for unknown names or options, for a rule that does not fit the model, and where no client has training
    scans; ClientFailure if more clients fail than ``training.quorum`` allows.
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
    if {"harmonization" in client.origin for client in clients.values()} != {tuned.harmonization != "none"}:
        raise StudyError(
            f"tuning {tuning} has harmonization {tuned.harmonization}, and the clients' embeddings are "
            f"{'not ' if tuned.harmonization != 'none' else ''}harmonized; fit and apply it first, or leave it out "
            "(fedbrain.federated.harmonization)"
        )
    model = build_classifier(
        head, tuned, head_options=given["head"], source=source, seed=derive_seed(seed, "model", head)
    )
    sharing = Sharing.of(model)
    if rule:
        rule = rule.fitted(adapted_layers(model))
        sharing = Sharing.of(model, rule)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(sharing.role(name) in ("shared", "private"))
    frozen = {id(tensor): tensor for name, tensor in model.named_parameters() if sharing.role(name) == "frozen"}

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
    if summary := _finished(folder, identity):
        logger.info("it is there already, made from the same inputs in the same way")
        return summary
    with PeakMemory(device) as peak:
        if aggregation == "centralized":
            trained = _train_centralized(seen, build_model, options, seed, device, folder, identity)
        elif aggregation == "local":
            trained = _train_local(_members(seen, device), build_model, options, seed, device, folder, identity)
        else:
            trained = _train_federated(
                clients,
                _members(seen, device),
                model,
                build_model,
                rule,
                sharing,
                options,
                seed,
                device,
                folder,
                identity,
            )

    write_table(pd.DataFrame(trained.rows, columns=list(ROUNDS)).astype(ROUNDS), folder / "rounds.tsv")
    common = {} if trained.global_model is None else dict.fromkeys(clients, trained.global_model)
    for kind, models in (("predictions", trained.models), ("predictions_global", common)):
        for side, ending in (("validation", "_validation.tsv"), ("test", ".tsv")):
            table = predict(clients, models, build_model, options, device, side=side)
            write_table(table, folder / f"{kind}{ending}")
    _write_model(trained, folder / "model.safetensors")
    summary = inputs | {
        "identity": identity,
        "best_round": dict(trained.best_round),
        "reason": dict(trained.reason),
        **_cost(model, source, sharing if rule else None),
        "bytes_down": sum(row["bytes_down"] for row in trained.rows),
        "bytes_up": sum(row["bytes_up"] for row in trained.rows),
        "compute_seconds": _by_client(trained.rows, "seconds", sum),
        "client_peak_memory": _by_client(trained.rows, "peak_memory", max),
        "seconds": round(time.perf_counter() - start, 3),
        # Rows of a run that went on are in part of an earlier process.
        "peak_memory": max(peak.bytes, *(row["peak_memory"] or 0 for row in trained.rows)),
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu",
        "encoder": origin.get("encoder"),
        "harmonization": origin.get("harmonization"),
        "clients": {name: _counts(client) for name, client in clients.items()},
        "warnings": _warnings(clients, aggregation, trained) + _failures(trained.rows),
        "versions": versions("torch", "flwr", "peft", "monai", "numpy", "safetensors"),
    }
    write_text(json.dumps(summary, indent=2) + "\n", folder / "summary.json")
    for pattern in (f"*{CHECKPOINT}", ".[0-9]*.*"):  # and what killed processes were just writing
        for path in folder.glob(pattern):
            path.unlink()
    shutil.rmtree(folder / CLIENTS, ignore_errors=True)
    return summary


def _finished(folder: Path, identity: str) -> dict | None:
    """The summary of a whole run in ``folder`` that was made from the same inputs; its files are marked as of now."""
    if not all((folder / name).is_file() for name in RUN_RESULTS):
        return None
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if summary.get("identity") != identity:
        return None
    for name in RUN_RESULTS:
        os.utime(folder / name)
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
    model = build_model().to(device) if models else None
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


def _train_federated(
    clients, members, model, build_model, rule, sharing, options, seed, device, folder, identity
) -> Trained:
    """The rounds over all members, from the tensors of ``model``, which stays as it is."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is first imported
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    os.environ["FLWR_HOME"] = str(folder / "flwr")
    from flwr.app import Context, RecordDict

    from fedbrain.federated.apps import OF_BEST, build_client_app, build_server_app
    from fedbrain.federated.grid import InProcessGrid

    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    start = {name: tensors[name] for role in ("shared", "merged") for name in sharing.select(tensors, role)}
    kept = {name: Kept(folder / CLIENTS / f"{name}.safetensors", identity) for name in members}
    client_app = build_client_app(
        lambda context: members[context.node_config["client"]],
        build_model,
        sharing,
        options,
        rule=rule,
        seed=seed,
        device=device,
        keep=kept.__getitem__,
    )
    results = []
    server_app = build_server_app(
        rule, start, options, results.append, seed=seed, checkpoint=folder / CHECKPOINT, identity=identity
    )
    grid = InProcessGrid(client_app, list(members))
    server_app(grid, Context(grid.run.run_id, 0, {}, RecordDict(), {}))
    (result,) = results

    past = result.best_round
    if rule.own_model == "end":
        past = _train_own_models(rule, result, members, kept, build_model, options, seed, device)
    state, models, own = State(result.best_round, result.tensors), {}, {}
    for name in members if rule.personalised else clients:
        groups = kept[name].after(past) if name in members else {}
        own[name] = {tensor: array for group in OF_BEST for tensor, array in groups.get(group, {}).items()}
        if rule.personalised and not own[name]:  # it had not trained by then: by chance, or because it always failed
            continue
        served = rule.down(state, name)
        models[name] = {tensor: filled_up(served[tensor], tensors[tensor].shape) for tensor in served} | own[name]
    own = {name: arrays for name, arrays in own.items() if arrays}
    best_round, reason = {"global": result.best_round}, {"global": result.reason}
    untrained = [name for name in members if name not in models]
    common = result.tensors if rule.personalised and rule.has_global_model else None
    return Trained(models, result.tensors, own, best_round, reason, result.rows, untrained, common)


def _train_own_models(rule, result, members, kept, build_model, options, seed, device) -> int:
    """Each client's own model, from the chosen global one; the number of the round, after all others, that it is kept as of.

    What that took counts in the client's last row.
    """
    from fedbrain.federated.apps import to_arrays

    number, last = options.rounds + 1, {row["client"]: row for row in result.rows}
    model, local = build_model().to(device), rule.local()
    received = {name: torch.as_tensor(array).to(device) for name, array in result.tensors.items()}
    for name, client in members.items():
        if "personal" not in kept[name].after(number):
            start, generator = time.perf_counter(), round_generator(seed, name, number)
            with PeakMemory(device) as peak:
                turn = Turn(number, model, client.train, options, generator, device, fitting_batch(options), received)
                own = to_arrays(local.train_personal(turn))
            cost = {"seconds": np.array(time.perf_counter() - start), "peak_memory": np.array(peak.bytes)}
            kept[name].keep(number, {"personal": own, "cost": cost}, best=result.best_round)
        row, cost = last[name], kept[name].after(number)["cost"]
        row["seconds"] = (row["seconds"] or 0) + float(cost["seconds"])
        row["peak_memory"] = max(row["peak_memory"] or 0, int(cost["peak_memory"]))
    return number


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
    return Trained(models, {}, models, best_round, reason, rows)


def _train_centralized(clients, build_model, options, seed, device, folder, identity) -> Trained:
    """All scans as one client."""
    pooled = pool_clients(list(clients.values())).to(device)
    tensors, best_round, reason, rows = _train_one(
        pooled, build_model, options, seed, device, folder / CHECKPOINT, identity
    )
    models = dict.fromkeys(clients, tensors)
    return Trained(models, tensors, {}, {pooled.name: best_round}, {pooled.name: reason}, rows)


def _train_one(client: ClientData, build_model, options: TrainingOptions, seed: int, device: str, path, identity):
    """One client without any exchange: (tensors of its best round, that round, why, rows of rounds.tsv)."""
    model, fitting = build_model().to(device), fitting_batch(options)
    best, rows, last = None, [], 0
    if past := load_checkpoint(path, identity):
        best, rows, last, tensors = past.best, past.rows, past.state.round, past.state.tensors
        fitting.size = past.state.memory["fitting"]
        model.load_state_dict({name: torch.as_tensor(array) for name, array in tensors.items()}, strict=False)
        logger.info("%s goes on after round %d of %d", client.name, last, options.rounds)
    rounds = train_alone(model, client, options, seed, device, done=last, fitting=fitting)
    while not lost_patience(last, best and best.round, options) and last < options.rounds:
        start = time.perf_counter()
        with PeakMemory(device) as peak:
            done = next(rounds)
        end = time.perf_counter()
        row = {
            "round": done.round,
            "client": client.name,
            "status": "ok",
            "scans": len(client.train),
            "loss": done.loss,
        }
        row |= {"bytes_down": 0, "bytes_up": 0, "seconds": end - start, "peak_memory": peak.bytes}
        value = None
        if done.validation:
            row |= {"validation_loss": done.validation.loss, "validation_score": done.validation.balanced_accuracy}
            value = row["validation_loss" if options.selection == "loss" else "validation_score"]
        last, tensors = done.round, {name: tensor.numpy() for name, tensor in done.tensors.items()}
        if is_better(value, best and best.value, options.selection):
            best = Best(done.round, value, tensors)
        rows.append(row)
        state = State(last, tensors, memory={"fitting": fitting.size})
        save_checkpoint(Checkpoint(state, best, rows), path, identity)
    if best is None:
        return tensors, last, "no validation scans: the last round", rows
    reason = describe_choice(options.selection, best.value)
    if last < options.rounds:
        reason += f"; ended after round {last}, {options.patience} rounds without a better one"
    return best.tensors, best.round, reason, rows


def _write_model(trained: Trained, path: Path) -> None:
    arrays = dict(trained.common)
    arrays |= {f"{client}/{name}": array for client, model in trained.own.items() for name, array in model.items()}
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


def _warnings(clients: Mapping[str, ClientData], aggregation: str, trained: Trained) -> list[str]:
    """What a reader of the result must know of the data, in words."""
    texts, alone = [], aggregation == "local" or bool(trained.own)
    instead = "no predictions" if trained.global_model is None else "predictions by the global model only"
    for name, client in sorted(clients.items()):
        if client.absent:
            texts.append(
                f"{name}: {client.absent} scan(s) without an embedding take no part (failed in an earlier stage)"
            )
        for side, part in zip(SIDES, _sides(client)):
            controls, cases = part.counts()
            if not len(part):
                consequence = {
                    "train": f"no model of its own, {instead}" if alone else "does not train",
                    "validation": "no part in the choice of the round",
                    "test": "no predictions",
                }[side]
                texts.append(f"{name}: no {side} scans: {consequence}")
            elif not (controls and cases):
                texts.append(f"{name}: {side} scans of one class only ({controls} controls, {cases} cases)")
        if name in trained.untrained:
            texts.append(
                f"{name}: had trained nothing of its own by the round that was chosen (not drawn, or failed): {instead}"
            )
    return texts


def _cost(model: nn.Module, source: EncoderSource, sharing: Sharing | None) -> dict:
    """Parameters and operations, and ``sent``: the trained parameters that the method has travel each way (0 without exchange)."""
    cost = cost_of(model, source)
    shared = [p for name, p in model.named_parameters() if sharing is not None and sharing.role(name) == "shared"]
    return cost | {"parameters": cost["parameters"] | {"sent": sum(parameter.numel() for parameter in shared)}}


def _by_client(rows: Sequence[Mapping], column: str, how: Callable) -> dict[str, float | None]:
    """``how`` of what was measured, by client; None for one of whom nothing was."""
    values: dict[str, list] = {row["client"]: [] for row in rows}
    for row in rows:
        values[row["client"]] += [row[column]] if row[column] is not None else []
    return {client: how(own) if own else None for client, own in values.items()}


def _failures(rows: list[dict]) -> list[str]:
    """What went wrong in the rounds, by client and reason."""
    rounds = max(row["round"] for row in rows)
    counts = Counter((row["client"], row["reason"]) for row in rows if row["status"] == "failed")
    texts = [
        f"{client}: no part in {count} of {rounds} rounds: {reason}"
        for (client, reason), count in sorted(counts.items())
    ]
    for row in rows:
        if row["status"] != "failed" and row.get("reason"):
            texts.append(f"{row['client']}: did not evaluate in round {row['round']}: {row['reason']}")
    return texts
