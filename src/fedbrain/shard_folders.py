"""The folder of a shard: worked on by one process at a time, and named by errors in the place of its files."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedbrain.errors import StudyError

logger = logging.getLogger(__name__)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other processes from working on a folder until the block ends, or this process, however it does.

    Snakemake's own lock is given up by ``--unlock``, while a job of the run that was given up may still be at work. Raises StudyError
    where another process holds the folder. Where the file system has no locks, that is said and nothing is kept off.
    """
    with open(folder.with_name(f".{folder.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(
                f"{folder}: another process works on this shard, perhaps a job of a run that was given up; wait for it or "
                "end it, and run again"
            ) from None
        except OSError as error:
            logger.warning("%s: no locks (%s); see that no two jobs work on one shard", folder, error.strerror)
        yield


@contextmanager
def errors_name_only(folder: Path) -> Iterator[None]:
    """An OSError in here names the folder in the place of the file, whose name would tell the subject to the log."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or type(error).__name__, str(folder)) from None
