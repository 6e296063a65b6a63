"""Several runs of the grid in one process, which imports and loads what they share once.

A run that fails does not keep the others from being trained; what is finished is held beside the results until all are, since
a workflow that takes the job for failed removes what the job had written.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from fedbrain.errors import StudyError
from fedbrain.tables import RUN_RESULTS

logger = logging.getLogger(__name__)

HELD = ".held"  # a folder in a run's


def train_runs(runs: Iterable[tuple[str, Path, Callable[[], object]]]) -> None:
    """Trains runs one after the other: (its name for messages, the folder of its results, what trains it).

    A run that is there, made from the same inputs in the same way, is taken as it is, provided that what trains it sees that, as
    :func:`fedbrain.federated.cell.train_cell` does. Raises StudyError at the end with the reasons of those that failed.
    """
    runs, failures = list(runs), []
    for name, folder, train in runs:
        _restore(folder)
        try:
            train()
        except Exception as error:
            if len(runs) == 1:
                raise
            logger.exception("%s failed; the others of this job go on", name)
            failures.append(f"{name}: {type(error).__name__}: {error}")
        else:
            if len(runs) > 1:
                _hold(folder)
    if failures:
        raise StudyError(
            f"{len(failures)} of {len(runs)} runs of this job failed, the others are kept; " + "; ".join(failures)
        )
    for _, folder, _ in runs:
        shutil.rmtree(folder / HELD, ignore_errors=True)


def _hold(folder: Path) -> None:
    """Hard links to a run's results: the same bytes, and no room for them."""
    shutil.rmtree(folder / HELD, ignore_errors=True)
    (folder / HELD).mkdir()
    for name in RUN_RESULTS:
        os.link(folder / name, folder / HELD / name)


def _restore(folder: Path) -> None:
    """Puts back what an earlier job had finished before it failed; whether it is still good is for the training to see."""
    for path in sorted((folder / HELD).glob("*")):
        if not (folder / path.name).exists():
            os.link(path, folder / path.name)
