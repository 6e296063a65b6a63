"""Embeddings of a shard of volumes by a frozen encoder: computed once per scan, kept while scan and encoder are unchanged."""

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from fedbrain.errors import StudyError
from fedbrain.imaging.layout import volume_path
from fedbrain.models.weights import weights_identity
from fedbrain.provenance import digest, sha256_of
from fedbrain.registry import lookup, module_of
from fedbrain.tables import written_atomically

logger = logging.getLogger(__name__)

VOLUME = (128, 128, 128)  # voxels, 1.5 mm
EMBEDDING = (384, 8, 8, 8)  # channels, then the token grid; what a shard without any scan is written as
FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class _Scan:
    row: int  # place within the shard's table, counted from 1: what messages name instead of the subject
    scan: str
    key: str


def embed_shard(
    table: pd.DataFrame,
    folder: str | Path,
    output: str | Path,
    *,
    encoder: str = "sam_med3d",
    weights: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 1,
    previous: bool = True,
    autocast: bool = False,
) -> dict:
    """Embeds every ``ok`` scan of a shard and writes them as one safetensors file.

    The file holds one tensor ``embeddings``, float16 (N, 384, 8, 8, 8), in the table's order, and as metadata (strings)
    ``scans`` and ``keys`` (JSON lists), ``encoder`` (a digest of its name, weights, code and precision) and ``weights``.

    Args:
        table: the shard's VOLUMES table.
        folder: where the shard's volumes lie.
        output: the safetensors file; the bytes are the same for the same volumes, encoder and machine.
        encoder: a name of the registry.
        weights: path of the released checkpoint; None or "random" for random weights drawn with ``seed``.
        device: "cpu" or "cuda".
        batch_size: volumes per forward pass; their number changes results by rounding only.
        previous: keep the rows of an existing ``output`` whose volume key and encoder are unchanged. Where nothing is
            left to compute, the encoder is not even loaded.
        autocast: compute in bfloat16 where the device is cuda (faster, about three digits); the CPU always uses float32.

    Returns:
        ``scans``, ``computed`` and ``reused`` (counts), ``encoder``, ``weights``, ``sha256`` of the file.

    Raises:
        StudyError: a volume is missing, unreadable or not 128^3; an embedding is not finite or beyond float16; the
            weights cannot be loaded. Scans are named by their row in the table, counted from 1.
    """
    weights = None if weights == "random" else weights
    autocast = autocast and device.startswith("cuda")
    ok = table[table["status"] == "ok"]
    places = [int(row) + 1 for row in np.flatnonzero(table["status"] == "ok")]
    scans = [_Scan(row, str(scan), str(key)) for row, scan, key in zip(places, ok["scan"], ok["key"], strict=True)]
    # The identity reads the whole checkpoint; it comes first, so that a missing file is known at once.
    identity = weights_identity(weights, seed=seed)
    fingerprint = encoder_digest(encoder, identity, autocast=autocast)

    kept = _kept_rows(output, fingerprint) if previous else {}
    rows = [kept.get((scan.scan, scan.key)) for scan in scans]  # each (384, 8, 8, 8) float16, or None
    missing = [i for i, row in enumerate(rows) if row is None]
    logger.info(
        "embeddings: %d scans, %d kept from before, %d to compute", len(scans), len(scans) - len(missing), len(missing)
    )

    if missing:
        network = lookup("encoder", encoder)(weights, seed=seed).to(device)
        batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
        with ThreadPoolExecutor(1) as reader, tqdm(total=len(missing), unit="scan", mininterval=5) as progress:
            # The next batch is read and unzipped while the device computes this one.
            coming = reader.submit(_read_volumes, folder, [scans[i] for i in batches[0]])
            for batch, following in zip(batches, [*batches[1:], []], strict=True):
                volumes = coming.result()
                coming = reader.submit(_read_volumes, folder, [scans[i] for i in following])
                embedded = _embed(network, volumes, device, autocast)
                for i, embedding in zip(batch, embedded, strict=True):
                    rows[i] = _as_float16(embedding, scans[i].row)
                progress.update(len(batch))

    embeddings = torch.stack(rows) if rows else torch.empty((0, *EMBEDDING), dtype=torch.float16)
    metadata = {
        "scans": json.dumps([scan.scan for scan in scans]),
        "keys": json.dumps([scan.key for scan in scans]),
        "encoder": fingerprint,
        "weights": identity,
    }
    with written_atomically(output) as temporary:
        temporary.write_bytes(_with_sorted_header(save({"embeddings": embeddings}, metadata)))
    return {
        "scans": len(scans),
        "computed": len(missing),
        "reused": len(scans) - len(missing),
        "encoder": fingerprint,
        "weights": identity,
        "sha256": sha256_of(output),
    }


def read_embeddings(path: str | Path) -> tuple[list[str], Tensor, dict[str, str]]:
    """Scan ids, embeddings (float16, (N, 384, 8, 8, 8)) and metadata of a file that ``embed_shard`` wrote.

    Raises StudyError where the file is missing, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            embeddings = file.get_tensor("embeddings")
        scans = json.loads(metadata["scans"])
        keys = json.loads(metadata["keys"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise StudyError(f"{path}: not a readable file of embeddings ({error}); delete it and run again") from error
    if not len(scans) == len(keys) == len(embeddings) or embeddings.dtype != torch.float16:
        raise StudyError(f"{path}: its scans and its embeddings do not fit together; delete it and run again")
    return scans, embeddings, metadata


def encoder_digest(encoder: str, identity: str, *, autocast: bool = False) -> str:
    """What decides whether an embedding still stands: the encoder's name, weights, source and precision."""
    source = find_spec(module_of("encoder", encoder)).origin
    precision = "bfloat16" if autocast else "float32"
    return digest({"encoder": encoder, "weights": identity, "code": sha256_of(source), "precision": precision})


def _kept_rows(output: str | Path, fingerprint: str) -> dict[tuple[str, str], Tensor]:
    """Embeddings of an earlier run by scan id and volume key; none where the encoder was another one."""
    if not Path(output).exists():
        return {}
    try:
        scans, embeddings, metadata = read_embeddings(output)
    except StudyError as error:
        logger.warning("%s; all scans of the shard are embedded again", error)
        return {}
    if metadata.get("encoder") != fingerprint:
        return {}
    return dict(zip(zip(scans, json.loads(metadata["keys"])), embeddings))


def _read_volumes(folder: str | Path, scans: Sequence[_Scan]) -> list[Tensor]:
    return [_read_volume(folder, scan) for scan in scans]


def _read_volume(folder: str | Path, scan: _Scan) -> Tensor:
    """(128, 128, 128) float32, axes (x, y, z) as in the file, which the preprocessing writes in RAS order."""
    path = volume_path(Path(folder), scan.scan)
    place = f"{folder}: the volume of row {scan.row} of the shard's table"
    mend = "delete the shard's table and run preprocess_shard again"
    try:
        image = nibabel.load(path)
        values = np.asarray(image.dataobj, dtype=np.float32)
    except FileNotFoundError:
        raise StudyError(f"{place} is missing; {mend}") from None
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        # Not chained and not quoted: nibabel's message holds the path, and the path holds the subject id.
        raise StudyError(f"{place} cannot be read ({type(error).__name__}); {mend}") from None
    if values.shape != VOLUME:
        raise StudyError(f"{place} is {values.shape} and not {VOLUME}; {mend}")
    if not np.isfinite(values).all():
        raise StudyError(f"{place} holds values that are not finite; {mend}")
    return torch.from_numpy(values)


@torch.inference_mode()
def _embed(network: torch.nn.Module, volumes: Sequence[Tensor], device: str, autocast: bool) -> Tensor:
    if torch.device(device).type == "cuda":
        # cuDNN rounds float32 inputs to TF32 (10 bits of mantissa) by default: "float32" would mean less than on the CPU.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    batch = torch.stack(list(volumes))[:, None].to(device)  # (B, 1, 128, 128, 128)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        return network(batch).float().cpu()  # (B, 384, 8, 8, 8)


def _as_float16(embedding: Tensor, row: int) -> Tensor:
    if not embedding.isfinite().all():
        raise StudyError(f"row {row} of the shard's table: its embedding is not finite; check the encoder's weights")
    if embedding.abs().max() >= FLOAT16_MAX:
        raise StudyError(
            f"row {row} of the shard's table: its embedding is beyond float16; check the encoder's weights"
        )
    return embedding.half()


def _with_sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its header's keys sorted: the library writes metadata in random order."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensor data starts at a multiple of 8
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
