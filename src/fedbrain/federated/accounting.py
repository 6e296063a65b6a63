"""What a federated run costs: bytes that travel, time, memory."""

import resource
import threading
from collections.abc import Iterable
from math import prod
from typing import ClassVar

import numpy as np
import torch

PAGE = resource.getpagesize()  # bytes
PAUSE = 0.05  # seconds between two samples of the memory


def payload_bytes(arrays: Iterable) -> int:
    """Bytes of the tensors in a message: elements times bytes per element, summed over its arrays.

    Takes what is really in the message (anything with ``shape`` and ``dtype``). What comes on top is left out, since it
    depends on the transport and not on the method: array headers (about 128 bytes per tensor), a handful of scalars, TLS.
    """
    return sum(prod(array.shape) * np.dtype(array.dtype).itemsize for array in arrays)


class PeakMemory:
    """Peak memory of a block of code in bytes: on CUDA of the tensors there, else of this process (Linux).

    On the CPU it is anonymous memory, read at the beginning, at the end and 20 times a second between: pages of memory-mapped inputs do
    not count, since the system gives them away whenever it wants the room. What lives shorter than a sample can be missed.

    Blocks may be nested: a whole run, and in it the turns of its clients, all served by one thread. What the process held before a block
    began counts in it. So the peak of one client's turn is that client's own where it is a process for itself, as in
    a hospital; where all clients share a process it is an upper bound, with what the server and the other clients hold.
    """

    _lock: ClassVar = threading.Lock()
    _open: ClassVar[list["PeakMemory"]] = []
    _over: ClassVar = threading.Event()  # ends the thread, once no block is left

    def __init__(self, device: str):
        self._device = torch.device(device)
        self.bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            self._note_around()
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._note(anonymous_memory())
        with self._lock:
            self._open.append(self)
            if self._device.type == "cpu" and len(_sampled()) == 1:
                PeakMemory._over = threading.Event()
                threading.Thread(target=_sample, args=(self._over,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        with self._lock:
            self._open.remove(self)
            if not _sampled():
                self._over.set()
        if self._device.type == "cuda":
            self._note(torch.cuda.max_memory_allocated(self._device))
            self._note_around()
        else:
            self._note(anonymous_memory())

    def _note(self, size: int) -> None:
        self.bytes = max(self.bytes, size)

    def _note_around(self) -> None:
        """The device has one peak for all: what it was goes to the blocks around this one before it is set back."""
        for block in self._open:
            if block._device == self._device:
                block._note(torch.cuda.max_memory_allocated(self._device))


def _sampled() -> list[PeakMemory]:
    return [block for block in PeakMemory._open if block._device.type == "cpu"]


def _sample(over: threading.Event) -> None:
    while not over.wait(PAUSE):
        size = anonymous_memory()
        with PeakMemory._lock:
            for block in _sampled():
                block._note(size)


def anonymous_memory() -> int:
    """Bytes of memory that this process holds beside mapped files and shared memory (Linux)."""
    with open("/proc/self/statm", "rb") as file:  # as in status, in a fourth of the time: it is read for every message
        _, resident, shared, *_ = file.read().split()
    return (int(resident) - int(shared)) * PAGE
