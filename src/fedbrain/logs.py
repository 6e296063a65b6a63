"""A job's log file: everything that the job and the libraries under it print, and what fedbrain tells."""

import logging
import os
import sys


def log_to(path: str) -> None:
    """Sends standard output, standard error and the log of this process to ``path``, for good.

    On the level of file descriptors, since compiled libraries (ITK) write past Python's streams.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
