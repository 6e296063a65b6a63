"""What a federated run costs: bytes that travel, time, memory."""

from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np
import torch


def payload_bytes(arrays: Iterable) -> int:
    """Bytes of the tensors in a message: elements times bytes per element, summed over its arrays.

    Takes what is really in the message (anything with ``shape`` and ``dtype``). What comes on top is left out, since it
    depends on the transport and not on the method: array headers (about 128 bytes per tensor), a handful of scalars, TLS.
    """
    return sum(prod(array.shape) * np.dtype(array.dtype).itemsize for array in arrays)


def peak_memory(device: str) -> int:
    """Peak memory in bytes: on CUDA of the tensors there, else of this process's resident memory (Linux)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage: its peak is inherited from the process that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024  # given in KiB
    raise RuntimeError("/proc/self/status has no VmHWM: not a Linux kernel?")
