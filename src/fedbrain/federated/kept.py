"""What a client keeps between rounds, on its own disk: private tensors, control variates, what memory allowed."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedbrain.federated.aggregation.rule import Tensors
from fedbrain.tables import written_atomically

Groups = Mapping[str, Tensors]  # arrays by what they are, then by name


class Kept:
    """Groups of arrays by the round after which they were kept; in one file, replaced atomically, or in memory only.

    A run that was killed may have written this after the server's last checkpoint: the round is then done again, from what
    was kept *before* it. And the server learns which round was the best one round late: what belongs to that round must still
    be there. So more than the last round is kept, and ``after(round)`` is the last of each group up to that round.

    Args:
        path: of the file, which need not be there; None keeps in memory.
        identity: of the run; what another run kept is not used.
    """

    def __init__(self, path: Path | None = None, identity: str = ""):
        self._path, self._identity = path, identity
        self._rounds: dict[int, Groups] = _read(path, identity) if path else {}

    def after(self, round: int) -> dict[str, Tensors]:
        """Of each group what was kept last, up to ``round``; a group that was not kept by then is absent."""
        groups = {}
        for number in sorted(self._rounds):
            if number <= round:
                groups |= self._rounds[number]
        return groups

    def keep(
        self,
        round: int,
        groups: Groups,
        *,
        best: int,
        of_best: Iterable[str] = (),
        accepted: int = 0,
        of_accepted: Iterable[str] = (),
    ) -> None:
        """Keeps ``groups`` as of ``round``, and forgets what nothing can ask for any more.

        That is all but the last before ``round``, in case the round is done again, and of the groups ``of_best`` what
        belongs to the round ``best``, the best one that the server knows of (0: none yet); of the groups ``of_accepted`` what
        belongs to the round ``accepted``, the last one before this of which the server took the client's update.
        """
        before = {number: groups for number, groups in self._rounds.items() if number < round}
        needed = {(_last(before, group), group) for group in {name for past in before.values() for name in past}}
        needed |= {(_last(before, group, best), group) for group in of_best}
        needed |= {(_last(before, group, accepted), group) for group in of_accepted}
        self._rounds = {
            number: {group: arrays for group, arrays in past.items() if (number, group) in needed}
            for number, past in sorted(before.items())
        }
        self._rounds = {number: past for number, past in self._rounds.items() if past} | {round: dict(groups)}
        if self._path:
            _write(self._rounds, self._path, self._identity)


def _last(rounds: Mapping[int, Groups], group: str, upto: int | None = None) -> int | None:
    return max((n for n, groups in rounds.items() if group in groups and (upto is None or n <= upto)), default=None)


def _write(rounds: Mapping[int, Groups], path: Path, identity: str) -> None:
    arrays = {
        f"{number}/{group}/{name}": np.array(array, order="C")
        for number, groups in rounds.items()
        for group, tensors in groups.items()
        for name, array in tensors.items()
    }
    with written_atomically(path) as temporary:
        save_file(arrays, temporary, metadata={"run": json.dumps({"identity": identity})})


def _read(path: Path, identity: str) -> dict[int, dict[str, dict[str, np.ndarray]]]:
    rounds: dict = {}
    try:
        with safe_open(path, framework="numpy") as file:
            if json.loads(file.metadata()["run"])["identity"] != identity:
                return {}
            for key in file.keys():  # noqa: SIM118 - not a mapping
                number, group, name = key.split("/", 2)
                rounds.setdefault(int(number), {}).setdefault(group, {})[name] = file.get_tensor(key)
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
        return {}
    return rounds
