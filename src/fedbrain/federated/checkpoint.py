"""A federated run on disk between two rounds: one safetensors file, replaced atomically after every round."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedbrain.federated.aggregation.rule import State, Tensors
from fedbrain.tables import written_atomically


@dataclass(frozen=True)
class Best:
    """The best round so far, what it was chosen by, its global tensors, and the clients whose values those are."""

    round: int
    value: float
    tensors: Tensors
    judges: Sequence[str] = ()


@dataclass(frozen=True)
class Checkpoint:
    """All that the server needs to go on; clients keep what is theirs (fedbrain.federated.kept).

    Random numbers are derived from seed, client and round, so none are stored.
    """

    state: State
    best: Best | None
    rows: list[dict]


def save_checkpoint(checkpoint: Checkpoint, path: Path, identity: str) -> None:
    """Writes ``checkpoint``; ``identity`` tells what run it belongs to."""
    groups = {"global": checkpoint.state.tensors, "moments": checkpoint.state.moments}
    best = None
    if checkpoint.best:
        groups["best"] = checkpoint.best.tensors
        best = {"round": checkpoint.best.round, "value": checkpoint.best.value, "judges": list(checkpoint.best.judges)}
    # JSON keeps a float64 to the last bit, so that a resumed run ends in the same bytes.
    record = {
        "identity": identity,
        "round": checkpoint.state.round,
        "memory": checkpoint.state.memory,
        "best": best,
        "rows": checkpoint.rows,
        "groups": {group: list(tensors) for group, tensors in groups.items()},
    }
    arrays = {
        f"{number}/{name}": np.asarray(array, order="C")
        for number, tensors in enumerate(groups.values())
        for name, array in tensors.items()
    }
    with written_atomically(path) as temporary:
        save_file(arrays, temporary, metadata={"run": json.dumps(record)})


def load_checkpoint(path: Path, identity: str) -> Checkpoint | None:
    """Reads the checkpoint at ``path``; None if there is none, or if it is another run's or not readable."""
    try:
        with safe_open(path, framework="numpy") as file:
            record = json.loads(file.metadata()["run"])
            if record["identity"] != identity:
                return None
            # In the order that they had: a sum over tensors in another one may differ in its last bit.
            groups = {
                group: {name: file.get_tensor(f"{number}/{name}") for name in names}
                for number, (group, names) in enumerate(record["groups"].items())
            }
    except (FileNotFoundError, SafetensorError, AttributeError, KeyError, TypeError, ValueError):
        return None
    best = record["best"] and Best(**record["best"], tensors=groups["best"])
    state = State(record["round"], groups["global"], record["memory"], groups["moments"])
    return Checkpoint(state, best, record["rows"])
