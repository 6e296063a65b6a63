"""The round loop: send, collect, aggregate, choose, write down. Runs over any Flower grid."""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from tqdm import tqdm

from fedbrain.federated.accounting import payload_bytes
from fedbrain.federated.aggregation.rule import Difference, Rule, Tensors, Update
from fedbrain.federated.checkpoint import Best, Checkpoint, load_checkpoint, save_checkpoint
from fedbrain.federated.task import TrainingOptions, describe_choice, is_better

logger = logging.getLogger(__name__)


class ClientFailure(RuntimeError):
    """Too few clients did their part of a round; the message names those that failed, the round and the reasons."""


@dataclass(frozen=True)
class Result:
    """The end of a federated run: the global tensors of the best round, why that round, and the rows of rounds.tsv."""

    tensors: Tensors
    best_round: int
    reason: str
    rows: list[dict]


@dataclass(frozen=True)
class Member:
    """A client as the server knows it."""

    node: int
    client: str
    train: int  # scans
    validation: int


def run_rounds(
    grid: Grid,
    rule: Rule,
    tensors: Tensors,
    options: TrainingOptions,
    *,
    quorum: int | None = None,
    deadline: float | None = None,
    expected: int = 1,
    checkpoint: Path | None = None,
    identity: str = "",
) -> Result:
    """Runs ``options.rounds`` rounds from the shared ``tensors`` and returns the model of the best one.

    In each round every client gets the global tensors, evaluates them on its validation scans (they are the result of the
    round before, so this costs no message of its own), trains, and replies. After the last round one more message asks for
    the evaluation of the final model. Validation values stand in the row of the round whose aggregation made the model.

    A client fails by an error or by not replying within ``deadline`` seconds. It gets a row with the reason; the round
    counts as long as ``quorum`` clients (all of them by default) did their part, else ClientFailure is raised.
    ``expected`` is the number of clients to wait for at the start. With ``checkpoint`` the run is written there after every
    round, and goes on from there if the file is of the same ``identity``.

    The best round is the one with the lowest mean validation loss (or highest balanced accuracy, ``options.selection``), each
    client weighted by its validation scans; ties go to the earlier round; without validation scans it is the last round.
    """
    members = _meet(grid, expected)
    quorum = len(members) if quorum is None else quorum
    state, best, rows = rule.init(tensors, [member.client for member in members.values()]), None, []
    if checkpoint and (past := load_checkpoint(checkpoint, identity)):
        state, best, rows = past.state, past.best, past.rows
        if past.clients:
            grid.restore(past.clients)
        logger.info("going on after round %d of %d", state.round, options.rounds)

    weights = {row["client"]: row["weight"] for row in rows if row["weight"] is not None}
    remaining = range(state.round + 1, options.rounds + 1)
    for number in tqdm(remaining, desc="rounds", initial=state.round, total=options.rounds, mininterval=5):
        arrays = to_record(state.tensors)
        messages = []
        for member in members.values():
            config = {
                "round": number,
                "evaluate": number > 1,
                "needs": sorted(rule.needs),
                "weight": weights.get(member.client, 1 / len(members)),
            }
            content = RecordDict({"arrays": arrays, "config": ConfigRecord(config)})
            messages.append(Message(content, member.node, MessageType.TRAIN, group_id=str(number)))
        replies, failures = _exchange(grid, messages, members, deadline)
        if len(replies) < quorum:
            raise ClientFailure(_complaint(number, failures, len(members), quorum))
        if number > 1:
            best = _judge(rows, number - 1, replies, members, state.tensors, best, options.selection)

        updates = [_update(client, reply, state.tensors, rule) for client, reply in replies.items()]
        state, _, by_client = rule.apply(state, updates)
        weights |= by_client
        down = payload_bytes(arrays.values())
        rows += [
            _row(number, member, replies.get(member.client), failures, by_client, down) for member in members.values()
        ]
        if checkpoint:
            clients = grid.client_states() if hasattr(grid, "client_states") else {}
            save_checkpoint(Checkpoint(state, best, rows, clients), checkpoint, identity)

    arrays = to_record(state.tensors)
    messages = [
        Message(RecordDict({"arrays": arrays}), member.node, MessageType.EVALUATE, group_id="final")
        for member in members.values()
    ]
    replies, failures = _exchange(grid, messages, members, deadline)
    if len(replies) < quorum:
        raise ClientFailure(_complaint(options.rounds, failures, len(members), quorum))
    best = _judge(rows, options.rounds, replies, members, state.tensors, best, options.selection)
    for row in rows[-len(members) :]:
        row["bytes_down"] += payload_bytes(arrays.values())
    if best is None:
        reason = "no client has validation scans: the last round"
        return Result(state.tensors, options.rounds, reason, rows)
    return Result(best.tensors, best.round, describe_choice(options.selection, best.value), rows)


def to_record(tensors: Tensors) -> ArrayRecord:
    """Numpy arrays as a Flower record."""
    return ArrayRecord({name: Array(np.array(tensor, order="C")) for name, tensor in tensors.items()})


def _meet(grid: Grid, expected: int) -> dict[int, Member]:
    """Waits for ``expected`` nodes, asks each who it is; members by node, in the order of their names."""
    while len(nodes := list(grid.get_node_ids())) < expected:
        time.sleep(1)
    replies = grid.send_and_receive([Message(RecordDict(), node, MessageType.QUERY) for node in nodes])
    members = []
    for reply in replies:
        if reply.has_error():
            raise ClientFailure(f"a client could not say who it is: {reply.error.reason}")
        record = reply.content["client"]
        members.append(Member(reply.metadata.src_node_id, record["client"], record["train"], record["validation"]))
    members.sort(key=lambda member: member.client)
    names = [member.client for member in members]
    if len(set(names)) < len(names):
        raise ClientFailure(f"two nodes have the same client name among: {', '.join(names)}")
    return {member.node: member for member in members}


def _exchange(grid: Grid, messages: Iterable[Message], members: Mapping[int, Member], deadline: float | None):
    """Sends and collects: (client -> content of its reply, client -> why there is none), both in the members' order."""
    contents, failures = {}, {}
    for reply in grid.send_and_receive(messages, timeout=deadline):
        client = members[reply.metadata.src_node_id].client
        if reply.has_error():
            failures[client] = " ".join((reply.error.reason or "unknown error").split())  # one line of a table
        else:
            contents[client] = reply.content
    for member in members.values():
        if member.client not in contents and member.client not in failures:
            failures[member.client] = f"no reply within {deadline} s"
    for client, reason in failures.items():
        logger.warning("client %s failed: %s", client, reason)
    return {m.client: contents[m.client] for m in members.values() if m.client in contents}, failures


def _complaint(number: int, failures: Mapping[str, str], members: int, quorum: int) -> str:
    reasons = "; ".join(f"client {client}: {reason}" for client, reason in sorted(failures.items()))
    return f"round {number}: {members - len(failures)} of {members} clients did their part, {quorum} needed; {reasons}"


def _update(client: str, reply: RecordDict, tensors: Tensors, rule: Rule) -> Update:
    metrics = reply["metrics"]
    after = {name: array.numpy() for name, array in reply["arrays"].items()}
    scalars = {name: metrics[name] for name in sorted(rule.needs) if name in metrics}
    return Update(client, Difference(after, tensors), metrics["scans"], scalars)


def _row(number, member: Member, reply: RecordDict | None, failures, weights, down: int) -> dict:
    """One row of rounds.tsv; its validation values come with the next message."""
    metrics = reply["metrics"] if reply is not None else {}
    sent = [array for record in reply.array_records.values() for array in record.values()] if reply is not None else []
    return {
        "round": number,
        "client": member.client,
        "status": "ok" if reply is not None else "failed",
        "reason": failures.get(member.client),
        "scans": member.train,
        "loss": metrics.get("loss"),
        "validation_loss": None,
        "validation_score": None,
        "weight": weights.get(member.client),
        "bytes_down": down,
        "bytes_up": payload_bytes(sent),
        "seconds": metrics.get("seconds"),
    }


def _judge(rows: list[dict], number: int, replies, members, tensors: Tensors, best: Best | None, selection: str):
    """Fills the validation values of round ``number`` into its rows; the better one of ``best`` and this round."""
    scans = {member.client: member.validation for member in members.values()}
    key = "validation_loss" if selection == "loss" else "validation_score"
    total, weight = 0.0, 0
    for row in rows:
        metrics = replies[row["client"]]["metrics"] if row["client"] in replies else {}
        if row["round"] == number and "validation_loss" in metrics:
            row |= {name: metrics[name] for name in ("validation_loss", "validation_score")}
            total += scans[row["client"]] * row[key]
            weight += scans[row["client"]]
    value = total / weight if weight else None
    return Best(number, value, tensors) if is_better(value, best and best.value, selection) else best
