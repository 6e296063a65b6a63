"""What a federated run costs: bytes that travel, time, memory."""

import threading
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


class PeakMemory:
    """Peak memory of a block of code in bytes: on CUDA of the tensors there, else of this process (Linux).

    On the CPU it is anonymous memory, sampled 20 times a second: pages of memory-mapped inputs do not count, since the system gives
    them away whenever it wants the room. What lives shorter than a sample can be missed.
    """

    def __init__(self, device: str):
        self._device = torch.device(device)
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self.bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._sampler.start()
        return self

    def __exit__(self, *_) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self._over.set()
            self._sampler.join()

    def _sample(self) -> None:
        while True:
            self.bytes = max(self.bytes, anonymous_memory())
            if self._over.wait(0.05):
                return


def anonymous_memory() -> int:
    """Bytes of memory that this process holds beside mapped files (Linux)."""
    fields = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        fields[name] = value
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))  # given in KiB
