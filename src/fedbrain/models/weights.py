"""Pretrained weights: reading a published checkpoint without running anything that it carries."""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedbrain.errors import StudyError
from fedbrain.models.cards import EncoderCard
from fedbrain.provenance import sha256_of


@dataclass(frozen=True)
class Layout:
    """How an encoder's weights lie in the file that its authors published."""

    card: EncoderCard
    container: str  # the key of the pickled dict that holds the tensors by name
    prefix: str  # what the encoder's own names start with in there; other names are left aside
    flat: bool = False  # the tensors may also be the pickled dict itself
    unused: tuple[str, ...] = ()  # parts of names (between dots) that the authors' own forward pass does not use
    classes: tuple = ()  # beyond tensors and plain containers: inert classes, or (class, the name it has in the file)
    hint: str = ""  # what is often taken for it


def weights_identity(path: str | Path | None, *, seed: int = 0, card: EncoderCard | None = None) -> str:
    """What tells one set of encoder weights from another: ``"random (seed 0)"``, or file name and SHA-256.

    Raises StudyError where the file is missing; with ``card``, it says where to get it.
    """
    if path is None:
        return f"random (seed {seed})"
    return f"{Path(path).name} sha256:{sha256_of(_existing(path, _mend(card)))}"


def read_weights(path: str | Path, shapes: Mapping[str, torch.Size], layout: Layout) -> dict[str, Tensor]:
    """The encoder's tensors (float32) of a published checkpoint, without their prefix.

    Only tensors, plain containers and the layout's classes are unpickled; a file that asks for anything else is refused,
    since unpickling runs code.

    Args:
        path: the checkpoint.
        shapes: the tensors that must be there, and their shapes.
        layout: where they are.

    Raises:
        StudyError: names the file, what is wrong with it and where to get the right one.
    """
    mend = _mend(layout.card)
    path = _existing(path, mend)
    checkpoint = _unpickle(path, layout.classes, mend)
    state = checkpoint.get(layout.container) if isinstance(checkpoint, Mapping) else None
    if state is None and layout.flat and isinstance(checkpoint, Mapping):
        state = checkpoint
    if not isinstance(state, Mapping):
        raise StudyError(
            f"{path}: holds no {layout.container}, so it is not the checkpoint of {layout.card.title}. {mend}"
        )
    tensors = {
        key.removeprefix(layout.prefix): value
        for key, value in state.items()
        if str(key).startswith(layout.prefix) and not set(layout.unused) & set(key.split("."))
    }
    problems = [f"{key} is missing" for key in shapes if key not in tensors]
    problems += [f"{key} is not known" for key in tensors if key not in shapes]
    problems += [
        f"{key} is {_shape(tensors[key])} and not {tuple(shape)}"
        for key, shape in shapes.items()
        if key in tensors and getattr(tensors[key], "shape", None) != shape
    ]
    if problems:
        hint = f" ({layout.hint})" if layout.hint else ""
        raise StudyError(
            f"{path}: these are not the weights of {layout.card.title}{hint}: {'; '.join(problems[:3])} "
            f"({len(problems)} differences). {mend}"
        )
    bad = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise StudyError(f"{path}: {bad[0]} and {len(bad) - 1} more hold values that are not finite. {mend}")
    # Copied, so that the network holds nothing of the file, which may be several times larger than the encoder.
    return {key: tensor.detach().to(torch.float32, copy=True) for key, tensor in tensors.items()}


def _mend(card: EncoderCard | None) -> str:
    take = (
        f"Take {card.file} from {card.origin} (licence: {card.licence})"
        if card
        else "Take it from where docs/encoder.md says"
    )
    return (
        f"{take}, put it on a disk that all jobs can read, and set encoder.weights in the config to its path; or set "
        "encoder.weights to random to try the study without pretraining"
    )


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _existing(path: str | Path, mend: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"encoder.weights: there is no file {path}. {mend}")
    return path


def _unpickle(path: Path, classes: tuple, mend: str) -> object:
    with open(path, "rb") as file:
        start = file.read(512)
    if start.lstrip()[:1] == b"<":
        raise StudyError(f"{path}: this is a web page, not the weights; the download saved the page about it. {mend}")
    if start.startswith(b"version https://git-lfs"):
        raise StudyError(f"{path}: this is a Git LFS pointer, not the weights; run `git lfs pull` there. {mend}")
    try:
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise StudyError(
                f"{path}: refused, since it asks to load something other than tensors and plain values, which could run "
                f"code ({_first_line(error)}). {mend}"
            ) from error
        raise StudyError(f"{path}: not a readable checkpoint ({_first_line(error)}). {mend}") from error
    except MemoryError:
        raise
    except Exception as error:  # a cut pickle fails in torch wherever it was cut, with whatever that line raises
        size = path.stat().st_size / 1e6
        raise StudyError(
            f"{path}: not a readable checkpoint; at {size:,.1f} MB it may be truncated ({_first_line(error)}). {mend}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
