"""The round loop: send, collect, aggregate, choose, write down. Runs over any Flower grid."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from tqdm import tqdm

from fedbrain.errors import StudyError
from fedbrain.federated.accounting import payload_bytes
from fedbrain.federated.aggregation.rule import Difference, Rule, State, Tensors, Update, blocks, filled_up
from fedbrain.federated.arrays import to_record, view
from fedbrain.federated.checkpoint import Best, Checkpoint, load_checkpoint, save_checkpoint
from fedbrain.federated.kinds import named
from fedbrain.federated.task import TrainingOptions, derive_seed, describe_choice, is_better, lost_patience

logger = logging.getLogger(__name__)

LAST = "not in the last evaluation"  # begins the reason in the last round's row of who trained and did not evaluate it
POLL = 0.5  # seconds between two looks for replies


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


@dataclass
class Outcome:
    """What became of a client's part of a round: its scalars, and why there is no more of it than those."""

    bytes_down: int = 0
    bytes_up: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None


def run_rounds(
    grid: Grid,
    rule: Rule,
    tensors: Tensors,
    options: TrainingOptions,
    *,
    seed: int = 0,
    expected: int = 1,
    checkpoint: Path | None = None,
    identity: str = "",
) -> Result:
    """Runs ``options.rounds`` rounds from ``tensors`` (shared ones, and those that the rule merges into); the best one's model.

    In each round every client gets the global tensors, evaluates them on its validation scans (they are the result of the
    round before, so this costs no message of its own), trains, and replies. With ``options.sample`` only some train, drawn
    from a generator of ``seed`` and the round; the others are asked for the evaluation alone, so that all rounds are judged on the
    same scans. After the last round one more message asks for the evaluation of the final model. Validation values stand in
    the row of the round whose aggregation made the model.

    A client fails by an error, by not replying within ``options.deadline`` seconds, or by an update that is refused: other
    names or shapes than were asked for, values that are not finite. It gets a row with the reason and has no part in the
    model; the round counts as long as ``options.quorum`` clients (all, by default, those that evaluate only included) did
    their part, else ClientFailure is raised. ``expected`` is the number of clients to wait for at the start. With ``checkpoint`` the run is written
    there after every round, and goes on from there if the file is of the same ``identity``.

    The best round is the one with the lowest mean validation loss (or highest balanced accuracy, ``options.selection``), each
    client weighted by its validation scans; ties go to the earlier round; without validation scans it is the last round. Rounds
    are compared on the same scans only: one that more clients judged goes before one that some of them did not. With
    ``options.patience`` the run ends once so many rounds were judged without a better one; since a round is judged while the
    next one is trained, that next one is still made.
    """
    members = _meet(grid, expected)
    _check_numbers(options, len(members))
    state, best, rows = rule.init(tensors, [member.client for member in members]), None, []
    if checkpoint and (past := load_checkpoint(checkpoint, identity)):
        state, best, rows = past.state, past.best, past.rows
        logger.info("going on after round %d of %d", state.round, options.rounds)

    weights = {row["client"]: row["weight"] for row in rows if row["weight"] is not None}
    remaining = range(state.round + 1, options.rounds + 1)
    for number in tqdm(remaining, desc="rounds", initial=state.round, total=options.rounds, mininterval=5):
        if lost_patience(state.round - 1, best and best.round, options):
            break
        asked = _drawn(members, options.sample, seed, number)
        accepted = {row["client"]: row["round"] for row in rows if row["status"] == "ok"}  # the last round of each
        down = _Down(rule, state, rows, best)
        messages = []
        for member in members:
            config = {"round": number, "best": best.round if best else 0}
            if member in asked:
                config |= {"evaluate": number > 1, "needs": sorted(rule.needs)}
                config |= {"weight": weights.get(member.client, 1 / len(members))}
                config |= {"accepted": accepted.get(member.client, 0)}
                messages.append(down.message(member, MessageType.TRAIN, config))
            elif number > 1:
                messages.append(down.message(member, MessageType.EVALUATE, config | {"round": number - 1}))

        state = down.state
        gathering = rule.gather(state, {member.client: member.train for member in asked})
        resting = named(rule.resting(number), down.shared)
        outcomes = {message.metadata.dst_node_id: Outcome(_payload(message.content)) for message in messages}
        for member, reply in _replies(grid, messages, members, options.deadline):
            outcome, training = outcomes[member.node], member in asked
            outcome.failure = _failure(reply, options.deadline)
            if outcome.failure is None:
                outcome.metrics, outcome.bytes_up = dict(reply.content["metrics"]), _payload(reply.content)
                if training and (refusal := _refusal(reply.content, down.expected(member, resting), rule)):
                    # What it says of the model that it received, and of what its part took, is as good as ever.
                    outcome.failure = refusal
                    outcome.metrics = _validation(outcome.metrics) | _measured(outcome.metrics)
            if outcome.failure is None:
                if training:
                    gathering.add(_update(member.client, reply.content, down.sent(member), resting, rule))
            else:
                logger.warning("client %s failed: %s", member.client, outcome.failure)
            reply = None  # an update may be as large as the model: none is held while the next one comes

        needed = asked if options.quorum else [member for member in members if member.node in outcomes]
        _require(options.quorum or len(needed), number, needed, outcomes)
        if number > 1:
            best = _judge(rows, number - 1, outcomes, members, state.tensors, best, options.selection)
        state, _, by_client = gathering.finish()
        del gathering, messages, down, _  # they hold the model of before: no part of the next round's memory
        weights |= by_client
        rows += [_row(number, member, member in asked, outcomes.get(member.node), by_client) for member in members]
        if checkpoint:
            save_checkpoint(Checkpoint(state, best, rows), checkpoint, identity)

    down = _Down(rule, state, rows, best)
    config = {"round": state.round, "best": best.round if best else 0}
    messages = [down.message(member, MessageType.EVALUATE, config) for member in members]
    outcomes = {message.metadata.dst_node_id: Outcome(_payload(message.content)) for message in messages}
    for member, reply in _replies(grid, messages, members, options.deadline):
        outcome = outcomes[member.node]
        outcome.failure = _failure(reply, options.deadline)
        outcome.metrics = {} if outcome.failure else dict(reply.content["metrics"])
        if outcome.failure:
            logger.warning("client %s failed: %s", member.client, outcome.failure)
    _require(options.quorum or len(members), state.round, members, outcomes)
    best = _judge(rows, state.round, outcomes, members, state.tensors, best, options.selection)
    for row, member in zip(rows[-len(members) :], members):
        row["bytes_down"] += outcomes[member.node].bytes_down
        took = _measured(outcomes[member.node].metrics)
        row["seconds"] = _both(row["seconds"], took.get("seconds"), sum)
        row["peak_memory"] = _both(row["peak_memory"], took.get("peak_memory"), max)
        if (failure := outcomes[member.node].failure) and row["reason"] is None:
            row["reason"] = f"{LAST}: {failure}"
    if best is None:
        judges = any(member.validation for member in members)
        reason = "no client judged a round" if judges else "no client has validation scans"
        return Result(_own(state.tensors), state.round, f"{reason}: the last round", rows)
    reason = describe_choice(options.selection, best.value)
    if absent := [member.client for member in members if member.validation and member.client not in best.judges]:
        reason += f", judged without {', '.join(absent)}, since no round was judged by all"
    if state.round < options.rounds:
        when = " before it" if best.round == state.round else ""
        reason += f"; ended after round {state.round}, {options.patience} or more rounds{when} without a better one"
    return Result(_own(best.tensors), best.round, reason, rows)


class _Down:
    """What goes down in a round: the same record to all clients, but where the rule says otherwise.

    Weights that the server changes go down as factors of their last change to a client that has seen all changes before, whole
    to one that was not in the last round. ``state`` is the rule's, its tensors being read-only views of the record that all clients
    get: the model is then held once, not twice.
    """

    def __init__(self, rule: Rule, state: State, rows: Sequence[Mapping], best: Best | None):
        self._rule, self.state = rule, state
        self.shared = [name for name in state.tensors if name not in rule.merged]
        self._beside = rule.beside(state)
        self._current = {row["client"] for row in rows if row["round"] == state.round and row["status"] == "ok"}
        self._records: dict[object, ArrayRecord] = {}

    def message(self, member: Member, kind: str, config: Mapping) -> Message:
        content = {"config": ConfigRecord(dict(config))}
        tensors = self._rule.down(self.state, member.client)
        names, key = self.shared, "all" if tensors is self.state.tensors else ("of", member.client)
        if self._rule.merged and self.state.round:
            if member.client in self._current:
                content["merge"] = self._record("merge", self._rule.factors(self.state))
            else:
                names, key = list(tensors), "whole"
        first = key not in self._records
        content["arrays"] = record = self._record(key, {name: tensors[name] for name in names})
        if first and tensors is self.state.tensors:
            views = {name: view(record[name]) if name in record else tensor for name, tensor in tensors.items()}
            self.state = replace(self.state, tensors=views)
        if self._beside and kind == MessageType.TRAIN:
            content["beside"] = self._record("beside", self._beside)
        return Message(RecordDict(content), member.node, kind, group_id=str(config["round"]))

    def sent(self, member: Member) -> dict[str, np.ndarray]:
        """The shared tensors as they went to a client, in the whole model's shapes."""
        tensors = self._rule.down(self.state, member.client)
        if tensors is self.state.tensors:
            return {name: tensors[name] for name in self.shared}
        return {name: filled_up(tensors[name], self.state.tensors[name].shape) for name in self.shared}

    def expected(self, member: Member, resting: Sequence[str]) -> dict[str, dict[str, tuple[int, ...]]]:
        """Names and shapes of what a client must send back, by record."""
        tensors = self._rule.down(self.state, member.client)
        arrays = {name: tensors[name].shape for name in self.shared if name not in resting}
        return {"arrays": arrays, "beside": {name: array.shape for name, array in self._beside.items()}}

    def _record(self, key: object, tensors: Tensors) -> ArrayRecord:
        if key not in self._records:
            self._records[key] = to_record(tensors)
        return self._records[key]


class _Views(Mapping):
    """The arrays of a record without copies of them: read-only views of what was received, filled up with zeros to a shape."""

    def __init__(self, record: ArrayRecord, like: Tensors):
        self._record, self._like = record, like

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._record:  # it rested
            return self._like[name]
        return filled_up(view(self._record[name]), self._like[name].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._like)

    def __len__(self) -> int:
        return len(self._like)


def _own(tensors: Tensors) -> Tensors:
    return {name: np.array(tensor) for name, tensor in tensors.items()}


def _meet(grid: Grid, expected: int) -> list[Member]:
    """Waits for ``expected`` nodes, asks each who it is; the members in the order of their names."""
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
    return members


def _check_numbers(options: TrainingOptions, members: int) -> None:
    for name in ("sample", "quorum"):
        if (getattr(options, name) or 0) > members:
            raise StudyError(
                f"training: {name} is {getattr(options, name)}, and there are {members} clients that train"
            )


def _drawn(members: Sequence[Member], sample: int | None, seed: int, number: int) -> list[Member]:
    """The members that train in a round, in their order; each round has a generator of its own, so a resumed run draws the same."""
    if sample is None:
        return list(members)
    generator = np.random.default_rng(derive_seed(seed, "sample", number))
    return [members[place] for place in sorted(generator.choice(len(members), size=sample, replace=False))]


def _replies(
    grid: Grid, messages: Iterable[Message], members: Sequence[Member], deadline: float | None
) -> Iterator[tuple[Member, Message | None]]:
    """Sends, and gives the replies in the members' order, each as soon as those before it are there; None where none came.

    A grid that calls its clients one by one gives each of them the whole of ``deadline``.
    """
    messages = list(messages)
    ids = dict(zip((message.metadata.dst_node_id for message in messages), grid.push_messages(messages)))
    order, early = [member for member in members if member.node in ids], {}
    one_by_one = getattr(grid, "one_by_one", False)
    end = None if deadline is None or one_by_one else time.monotonic() + deadline
    while order and (end is None or time.monotonic() < end):
        start = time.monotonic()
        came = list(grid.pull_messages(list(ids.values())))
        late = one_by_one and deadline is not None and time.monotonic() - start > deadline
        for reply in came:
            if ids.pop(reply.metadata.src_node_id, None) is not None:
                early[reply.metadata.src_node_id] = None if late else reply
        if not came and one_by_one:
            break
        if not came:
            time.sleep(POLL if end is None else max(0.0, min(POLL, end - time.monotonic())))
        came = reply = None  # an update may be as large as the model: it is not held here, too
        while order and order[0].node in early:
            yield order[0], early.pop(order.pop(0).node)
    for member in order:
        yield member, early.pop(member.node, None)


def _failure(reply: Message | None, deadline: float | None) -> str | None:
    """Why there is no content, in one line of a table."""
    if reply is None:
        return "no reply" if deadline is None else f"no reply within {deadline:g} s"
    if reply.has_error():
        return " ".join((reply.error.reason or "unknown error").split())
    # Not by content.metric_records and its like: what these return keeps the whole update until the next garbage collection.
    metrics = reply.content.get("metrics")
    if not isinstance(metrics, MetricRecord):
        return "reply refused: metrics are missing"
    for name, value in metrics.items():
        if not isinstance(value, int | float):
            return f"reply refused: {name} is no number"
    return None


def _refusal(content: RecordDict, expected: Mapping[str, Mapping[str, tuple[int, ...]]], rule: Rule) -> str | None:
    """Why a client's update has no part in the model: names, shapes or values that it must not have."""
    for record, shapes in expected.items():
        sent = content[record] if record in content and isinstance(content[record], ArrayRecord) else {}
        if set(sent) != set(shapes):
            wrong = sorted(set(sent) ^ set(shapes))
            return f"update refused: {wrong[0]} is {'not asked for' if wrong[0] in sent else 'missing'}"
        for name, shape in shapes.items():
            array = sent[name]
            if tuple(array.shape) != tuple(shape):
                return f"update refused: {name} has shape {tuple(array.shape)}, not {tuple(shape)}"
            try:
                values = view(array).reshape(-1)
                finite = all(np.isfinite(values[block]).all() for block in blocks(values.size))
            except (TypeError, ValueError):
                return f"update refused: {name} holds no numbers"
            if not finite:
                return f"update refused: {name} has values that are not finite"
    metrics = content["metrics"]
    if "scans" not in metrics:
        return "update refused: scans is missing"
    for name in ("scans", *sorted(rule.needs)):
        if name in metrics and not isfinite(metrics[name]):
            return f"update refused: {name} is {metrics[name]}"
    if metrics["scans"] < 1:
        return f"update refused: {metrics['scans']} training scans"
    return None


def _validation(metrics: Mapping[str, float]) -> dict[str, float]:
    """The validation values among the scalars of a reply; none where they are not all there, or not finite."""
    names = ("validation_loss", "validation_score")
    whole = all(isfinite(metrics.get(name, float("nan"))) for name in names)
    return {name: metrics[name] for name in names} if whole else {}


def _measured(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a reply says that its part took, as far as it is a number."""
    kinds = {"seconds": float, "peak_memory": int}
    return {name: kind(metrics[name]) for name, kind in kinds.items() if isfinite(metrics.get(name, float("nan")))}


def _both(one: float | None, other: float | None, how: Callable[[list[float]], float]) -> float | None:
    there = [value for value in (one, other) if value is not None]
    return how(there) if there else None


def _update(client: str, content: RecordDict, sent: Tensors, resting: Sequence[str], rule: Rule) -> Update:
    metrics = content["metrics"]
    scalars = {name: metrics[name] for name in sorted(rule.needs) if name in metrics}
    beside = {name: view(array) for name, array in content["beside"].items()} if "beside" in content else {}
    return Update(client, Difference(_Views(content["arrays"], sent), sent), metrics["scans"], scalars, beside)


def _payload(content: RecordDict) -> int:
    arrays = [a for record in content.values() if isinstance(record, ArrayRecord) for a in record.values()]
    try:
        return payload_bytes(arrays)
    except TypeError:  # no type of numbers: such an update is refused, and was sent all the same
        return sum(len(array.data) for array in arrays)


def _require(quorum: int, number: int, asked: Sequence[Member], outcomes: Mapping[int, Outcome]) -> None:
    """Raises ClientFailure where fewer than ``quorum`` of those asked did their part."""
    failures = {member.client: failure for member in asked if (failure := outcomes[member.node].failure)}
    if len(asked) - len(failures) < min(quorum, len(asked)):
        reasons = "; ".join(f"client {client}: {reason}" for client, reason in failures.items())
        raise ClientFailure(
            f"round {number}: {len(asked) - len(failures)} of {len(asked)} clients did their part, {quorum} needed; {reasons}"
        )


def _row(number: int, member: Member, asked: bool, outcome: Outcome | None, weights: Mapping[str, float]) -> dict:
    """One row of rounds.tsv; its validation values come with the next message."""
    outcome = outcome or Outcome()
    status, took = "failed" if outcome.failure else "ok", _measured(outcome.metrics)
    return {
        "round": number,
        "client": member.client,
        "status": status if asked else "rested",
        "reason": outcome.failure,
        "scans": member.train if asked else 0,
        "loss": outcome.metrics.get("loss"),
        "validation_loss": None,
        "validation_score": None,
        "weight": weights.get(member.client),
        "bytes_down": outcome.bytes_down,
        "bytes_up": outcome.bytes_up,
        "seconds": took.get("seconds"),
        "peak_memory": took.get("peak_memory"),
    }


def _judge(rows: list[dict], number: int, outcomes, members, tensors: Tensors, best: Best | None, selection: str):
    """Fills the validation values of round ``number`` into its rows; the better one of ``best`` and this round.

    A mean over other scans is another measure: where a client that judged before is missing this round is none to choose, and
    where one more has joined, what was chosen without it is given up.
    """
    by_client = {member.client: member for member in members}
    key = "validation_loss" if selection == "loss" else "validation_score"
    total, weight, judges = 0.0, 0, []
    for row in rows:
        if row["round"] != number:
            continue
        member = by_client[row["client"]]
        if (values := _validation(outcomes[member.node].metrics)) and member.validation:
            row |= values
            total += member.validation * row[key]
            weight += member.validation
            judges.append(member.client)
    value, before = total / weight if weight else None, set(best.judges if best else ())
    if not before <= set(judges):
        return best
    compared = best.value if best and before == set(judges) else None
    return Best(number, value, tensors, judges) if is_better(value, compared, selection) else best
