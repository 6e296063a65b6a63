"""What a frozen encoder, or its frozen first blocks, make of a shard of volumes: computed once per scan and kept.

A cut says how far (fedbrain.models.tuning): "output", the embedding, in float16, which is what heads are trained on;
"block{k}", the tokens that enter block k, in float32, so that training from there on gives what training from the volume
gives; "volume", the volume itself, unpacked into one array so that training reads it without delay.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from fedbrain.devices import FittingBatch, autocast, be_repeatable
from fedbrain.errors import StudyError
from fedbrain.imaging.layout import volume_path
from fedbrain.models.cards import CARDS
from fedbrain.models.tuning import OUTPUT, VOLUME, start_of
from fedbrain.models.weights import weights_identity
from fedbrain.provenance import digest, sha256_of
from fedbrain.registry import lookup, module_of
from fedbrain.tables import written_atomically

logger = logging.getLogger(__name__)

SHAPE = (128, 128, 128)  # voxels, 1.5 mm
FLOAT16_MAX = 65504.0
NO_ENCODER = "none"  # stands in the encoder's place for the cut "volume"


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
    cut: str = OUTPUT,
    weights: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 1,
    previous: bool = True,
    precision: str = "float32",
) -> dict:
    """Embeds every ``ok`` scan of a shard and writes them as one safetensors file.

    The file holds one tensor ``embeddings`` (N, ...) in the table's order, and as metadata (strings) ``scans`` and ``keys``
    (JSON lists), ``encoder`` (a digest of its name, weights, code, cut and precision) and ``weights``. Per scan, with
    SAM-Med3D: "output" (384, 8, 8, 8) float16, 0.4 MB; "block{k}" (512, 768) float32, 1.6 MB; "volume" (1, 128, 128, 128)
    float32, 8.4 MB.

    Args:
        table: the shard's VOLUMES table.
        folder: where the shard's volumes lie.
        output: the safetensors file; the bytes are the same for the same volumes, encoder and machine.
        encoder: a name of the registry; without effect on the cut "volume".
        cut: how far the encoder is computed.
        weights: path of the published checkpoint; None or "random" for random weights drawn with ``seed``.
        device: "cpu" or "cuda".
        batch_size: volumes per forward pass, fewer where memory runs out; their number changes results by rounding only.
        previous: keep the rows of an existing ``output`` whose volume key and encoder are unchanged. Where nothing is
            left to compute, the encoder is not even loaded.
        precision: "float32", or "bfloat16" for torch's autocast (faster where the hardware has it; about three digits).

    Returns:
        ``scans`` (their number), ``encoder``, ``weights``, ``cut``, ``sha256`` of the file; the same for the same file, however
        many scans were kept from before (that is in the log).

    Raises:
        StudyError: a volume is missing, unreadable or not 128^3; an embedding is not finite or beyond float16; the
            weights cannot be loaded. Scans are named by their row in the table, counted from 1.
    """
    weights = None if weights == "random" else weights
    ok = table[table["status"] == "ok"]
    places = [int(row) + 1 for row in np.flatnonzero(table["status"] == "ok")]
    scans = [_Scan(row, str(scan), str(key)) for row, scan, key in zip(places, ok["scan"], ok["key"], strict=True)]
    # The identity reads the whole checkpoint; it comes first, so that a missing file is known at once.
    identity = NO_ENCODER if cut == VOLUME else weights_identity(weights, seed=seed, card=CARDS.get(encoder))
    fingerprint = encoder_digest(encoder, identity, cut=cut, precision=precision)

    kept = _kept_rows(output, fingerprint) if previous else {}
    rows = [kept.get((scan.scan, scan.key)) for scan in scans]  # each a tensor of the cut's shape, or None
    missing = [i for i, row in enumerate(rows) if row is None]
    logger.info(
        "%s: %d scans, %d kept from before, %d to compute", cut, len(scans), len(scans) - len(missing), len(missing)
    )

    build = partial(_computation, encoder, cut, weights, seed, device, precision)
    embedded = _embedded(folder, [scans[i] for i in missing], cut, build, batch_size)
    metadata = {
        "scans": json.dumps([scan.scan for scan in scans]),
        "keys": json.dumps([scan.key for scan in scans]),
        "encoder": fingerprint,
        "weights": identity,
        "cut": cut,
    }
    rows = ((next(embedded) if row is None else row) for row in rows)
    sha256 = _write(output, rows, len(scans), _dtype(cut), metadata)
    return {"scans": len(scans), "encoder": fingerprint, "weights": identity, "cut": cut, "sha256": sha256}


def _embedded(folder, scans: Sequence[_Scan], cut: str, build: Callable, batch_size: int) -> Iterator[Tensor]:
    """What is kept of each of ``scans``, in their order, by the function that ``build`` gives. Nothing is built for none."""
    if not scans:
        return
    compute, fitting = build(), FittingBatch(batch_size)
    batches = [scans[start : start + batch_size] for start in range(0, len(scans), batch_size)]
    with ThreadPoolExecutor(1) as reader, tqdm(total=len(scans), unit="scan", mininterval=5) as progress:
        # The next batch is read and unzipped while the device computes this one.
        coming = reader.submit(_read_volumes, folder, batches[0])
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            volumes = coming.result()  # (B, 1, 128, 128, 128)
            coming = reader.submit(_read_volumes, folder, following)
            embedded = fitting.run(lambda parts: torch.cat([compute(part) for part in parts]), volumes)
            for scan, embedding in zip(batch, embedded, strict=True):
                yield _checked(embedding, cut, scan.row)
            progress.update(len(batch))


def _write(output, rows: Iterator[Tensor], count: int, dtype: torch.dtype, metadata: Mapping[str, str]) -> str:
    """Writes rows of one shape as the safetensors tensor ``embeddings``, one after the other; the file's SHA-256.

    Not by the library, which needs all of them in memory, twice, and writes metadata in random order. The format: the
    header's length (8 bytes, little endian), a JSON header padded to 8 bytes, the values.
    """
    sha256 = hashlib.sha256()
    first = next(rows, torch.empty(0, dtype=dtype))
    shape = [count, *(first.shape if count else ())]
    kind = {torch.float16: "F16", torch.float32: "F32"}[dtype]
    size = math.prod(shape) * first.element_size()
    tensor = {"data_offsets": [0, size], "dtype": kind, "shape": shape}
    header = {"__metadata__": dict(metadata), "embeddings": tensor}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written_atomically(output) as temporary, open(temporary, "wb") as file:
        head = [len(text).to_bytes(8, "little"), text]
        values = (row.contiguous().numpy().tobytes() for row in chain([first] if count else [], rows))
        for part in chain(head, values):
            file.write(part)
            sha256.update(part)
    return sha256.hexdigest()


def read_embeddings(path: str | Path) -> tuple[list[str], Tensor, dict[str, str]]:
    """Scan ids, embeddings (N, ...) and metadata of a file that ``embed_shard`` wrote.

    The tensor is memory-mapped: a scan is read when it is used. Raises StudyError where the file is missing, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            embeddings = file.get_tensor("embeddings")
        scans = json.loads(metadata["scans"])
        keys = json.loads(metadata["keys"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise StudyError(f"{path}: not a readable file of embeddings ({error}); delete it and run again") from error
    if not len(scans) == len(keys) == len(embeddings):
        raise StudyError(f"{path}: its scans and its embeddings do not fit together; delete it and run again")
    return scans, embeddings, metadata


def encoder_digest(encoder: str, identity: str, *, cut: str = OUTPUT, precision: str = "float32") -> str:
    """What decides whether an embedding still stands: the encoder's name, weights and source, the cut, the precision."""
    if cut == VOLUME:
        return digest({"cut": cut})
    code = [
        sha256_of(find_spec(module).origin) for module in (module_of("encoder", encoder), "fedbrain.models.encoder")
    ]
    return digest({"encoder": encoder, "weights": identity, "code": code, "precision": precision, "cut": cut})


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


def _read_volumes(folder: str | Path, scans: Sequence[_Scan]) -> Tensor | None:
    """(B, 1, 128, 128, 128) float32; None for no scans."""
    return torch.stack([_read_volume(folder, scan) for scan in scans])[:, None] if scans else None


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
    if values.shape != SHAPE:
        raise StudyError(f"{place} is {values.shape} and not {SHAPE}; {mend}")
    if not np.isfinite(values).all():
        raise StudyError(f"{place} holds values that are not finite; {mend}")
    return torch.from_numpy(values)


def _computation(encoder: str, cut: str, weights, seed: int, device: str, precision: str):
    """The function from volumes (B, 1, 128, 128, 128) to what is kept of them, on the CPU."""
    if cut == VOLUME:
        return lambda volumes: volumes
    be_repeatable(device)
    network = lookup("encoder", encoder)(weights, seed=seed).to(device)
    start = start_of(cut)

    @torch.inference_mode()
    def compute(volumes: Tensor) -> Tensor:
        with autocast(device, precision):
            volumes = volumes.to(device)
            embedded = network(volumes) if start is None else network.tokens(volumes, start)
        return embedded.float().cpu()

    return compute


def _dtype(cut: str) -> torch.dtype:
    return torch.float16 if cut == OUTPUT else torch.float32


def _checked(embedding: Tensor, cut: str, row: int) -> Tensor:
    if not embedding.isfinite().all():
        raise StudyError(f"row {row} of the shard's table: its embedding is not finite; check the encoder's weights")
    if cut == OUTPUT and embedding.abs().max() >= FLOAT16_MAX:
        raise StudyError(
            f"row {row} of the shard's table: its embedding is beyond float16; check the encoder's weights"
        )
    return embedding.to(_dtype(cut))
