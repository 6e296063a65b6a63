"""Arrays in Flower's messages. A model may be large, so none is copied beside its message without need."""

from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.common.constant import SType

HEAD = 10  # bytes before the text of a header: name, version, length (numpy.lib.format, 1.0)


def to_record(tensors: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Numpy arrays as a Flower record."""
    record = ArrayRecord()
    for name, tensor in tensors.items():
        record[name] = serialized(tensor)
    return record


def serialized(values: np.ndarray) -> Array:
    """What ``Array(values)`` is, to the byte, by one copy of the values; Flower's own way makes three."""
    values = np.asarray(values, order="C")
    return Array(
        str(values.dtype), values.shape, SType.NUMPY, b"".join((_header(values.dtype, values.shape), values.data))
    )


def view(array: Array) -> np.ndarray:
    """The values of a serialized array, where they lie; not to be written to. Raises ValueError for what is no array of that shape."""
    head = array.data[: HEAD + int.from_bytes(array.data[HEAD - 2 : HEAD], "little")]
    shape, fortran, kind = _parsed(head)
    if shape != tuple(array.shape):
        raise ValueError(f"an array of shape {shape} is said to have shape {tuple(array.shape)}")
    values = np.frombuffer(array.data, dtype=kind, offset=len(head))
    return values.reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=4096)  # headers are the same in every message, and text that takes longer than a small tensor
def _header(kind: np.dtype, shape: tuple[int, ...]) -> bytes:
    file, like = BytesIO(), np.broadcast_to(np.zeros((), kind), shape)
    data = np.lib.format.header_data_from_array_1_0(like) | {"fortran_order": False}
    np.lib.format.write_array_header_1_0(file, data)
    return file.getvalue()


@lru_cache(maxsize=4096)
def _parsed(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    file = BytesIO(head)
    if (version := np.lib.format.read_magic(file)) != (1, 0):
        raise ValueError(f"NumPy's format {version} is not used for arrays of numbers")
    return np.lib.format.read_array_header_1_0(file)
