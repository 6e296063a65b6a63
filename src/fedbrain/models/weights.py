"""Pretrained weights: reading the released checkpoint without running anything that it carries."""

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedbrain.errors import StudyError
from fedbrain.provenance import sha256_of

ORIGIN = "Hugging Face repository blueyo0/SAM-Med3D, file sam_med3d_turbo.pth (Apache-2.0)"
MEND = (
    f"Take it from {ORIGIN}, put it on a disk that all jobs can read, and set encoder.weights in the config to its "
    "path; or set encoder.weights to random to try the study without pretraining"
)
PREFIX = "image_encoder."


def weights_identity(path: str | Path | None, *, seed: int = 0) -> str:
    """What tells one set of encoder weights from another: ``"random (seed 0)"``, or file name and SHA-256.

    Raises StudyError where the file is missing.
    """
    if path is None:
        return f"random (seed {seed})"
    return f"{Path(path).name} sha256:{sha256_of(_existing(path))}"


def read_image_encoder_weights(path: str | Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The image encoder's tensors (float32) of a released SAM-Med3D checkpoint, without their prefix.

    The checkpoint is a pickled dict with the weights of the whole model under ``model_state_dict`` beside the optimizer's
    state and the training arguments (``argparse.Namespace``). Only tensors, plain containers and that one class are
    unpickled; a file that asks for anything else is refused, since unpickling runs code. Keys of ``prompt_encoder``
    and ``mask_decoder`` are left aside.

    Args:
        path: the checkpoint.
        shapes: the tensors that must be there, and their shapes.

    Raises:
        StudyError: names the file, what is wrong with it and where to get the right one.
    """
    path = _existing(path)
    checkpoint = _unpickle(path)
    state = checkpoint.get("model_state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, Mapping):
        raise StudyError(f"{path}: holds no model_state_dict, so it is not a SAM-Med3D checkpoint. {MEND}")
    tensors = {key.removeprefix(PREFIX): value for key, value in state.items() if str(key).startswith(PREFIX)}
    problems = [f"{key} is missing" for key in shapes if key not in tensors]
    problems += [f"{key} is not known" for key in tensors if key not in shapes]
    problems += [
        f"{key} is {tuple(tensors[key].shape)} and not {tuple(shape)}"
        for key, shape in shapes.items()
        if key in tensors and tensors[key].shape != shape
    ]
    if problems:
        raise StudyError(
            f"{path}: these are not the weights of SAM-Med3D's vit_b_ori (its registry name vit_b is another network, "
            f"and files made for that one do not fit): {'; '.join(problems[:3])} ({len(problems)} differences). {MEND}"
        )
    bad = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise StudyError(f"{path}: {bad[0]} and {len(bad) - 1} more hold values that are not finite. {MEND}")
    # Copied, so that the network holds nothing of the file, which is several times larger than the encoder.
    return {key: tensor.detach().to(torch.float32, copy=True) for key, tensor in tensors.items()}


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"encoder.weights: there is no file {path}. {MEND}")
    return path


def _unpickle(path: Path) -> object:
    with open(path, "rb") as file:
        start = file.read(512)
    if start.lstrip()[:1] == b"<":
        raise StudyError(f"{path}: this is a web page, not the weights; the download saved the page about it. {MEND}")
    if start.startswith(b"version https://git-lfs"):
        raise StudyError(f"{path}: this is a Git LFS pointer, not the weights; run `git lfs pull` there. {MEND}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise StudyError(
                f"{path}: refused, since it asks to load something other than tensors and plain values, which could run "
                f"code ({_first_line(error)}). {MEND}"
            ) from error
        raise StudyError(f"{path}: not a readable checkpoint ({_first_line(error)}). {MEND}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        size = path.stat().st_size / 1e6
        raise StudyError(
            f"{path}: not a readable checkpoint; at {size:,.1f} MB it may be truncated ({_first_line(error)}). {MEND}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
