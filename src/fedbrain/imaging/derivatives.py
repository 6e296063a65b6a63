"""A scan's derivatives on disk (volume, brain mask, perhaps a snapshot, record): written whole, found again, removed.

The record is written last and carries the key of what the volume was made from and how, so that a volume is taken up
again if, and only if, it would be made the same way; so is what is known of a failure. Messages name the folder and never a file, whose name is the subject's.
"""

import ast
import gzip
import io
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import nibabel
import numpy as np

from fedbrain.errors import StudyError
from fedbrain.imaging import layout, registration
from fedbrain.provenance import digest, versions
from fedbrain.shard_folders import errors_name_only
from fedbrain.tables import write_text, written_atomically

MEND = "delete the shard's table in results/volumes and run again"


def kept_record(folder: Path, scan: str, key: str) -> dict | None:
    """The record of an earlier run, if it was made the same way and all that was written with it is there, whole."""
    try:
        with errors_name_only(folder):
            record = json.loads(layout.sidecar_path(folder, scan).read_text())
            sizes = {kind: _path(folder, scan, kind).stat().st_size for kind in record["bytes"]}
        return record if record["key"] == key and record["bytes"] == sizes else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # a disk's fault goes on: it must not pass for a volume that has to be made anew


def kept_failure(folder: Path, scan: str, key: str) -> dict | None:
    """What ``write_failure`` wrote in an earlier run, if the scan would be treated the same way now."""
    try:
        with errors_name_only(folder):
            failure = json.loads(layout.failure_path(folder, scan).read_text())
        return failure if failure["key"] == key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_failure(folder: Path, scan: str, failure: dict) -> None:
    """Writes why a scan failed (``reason``, ``seconds``, ``key``, ``method``), so that it need not be found out again."""
    with errors_name_only(folder):
        write_text(json.dumps(failure, indent=1, sort_keys=True) + "\n", layout.failure_path(folder, scan))


def write(
    folder: Path, scan: str, volume: np.ndarray, mask: np.ndarray, record: dict, snapshot: bytes | None = None
) -> None:
    """Writes volume (float32), mask (bool, as uint8), a snapshot if there is one, and the record, with their sizes in it.

    Each is renamed into place.
    """
    with errors_name_only(folder):
        # An old record must not outlive its volume, not even for the moment between two renames.
        layout.sidecar_path(folder, scan).unlink(missing_ok=True)
        layout.failure_path(folder, scan).unlink(missing_ok=True)
        sizes = {
            "volume": _write_nifti(volume, layout.volume_path(folder, scan)),
            "mask": _write_nifti(mask.astype(np.uint8), layout.mask_path(folder, scan)),
        }
        if snapshot is not None:
            with written_atomically(layout.snapshot_path(folder, scan)) as temporary:
                temporary.write_bytes(snapshot)
            sizes["snapshot"] = len(snapshot)
        text = json.dumps(record | {"bytes": sizes}, indent=1, sort_keys=True) + "\n"
        write_text(text, layout.sidecar_path(folder, scan))


def read(folder: Path, scan: str, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Volume (128, 128, 128) float32 and mask (128, 128, 128) bool. Raises StudyError, naming ``place``, where one is not whole."""
    paths = ((layout.volume_path(folder, scan), np.float32), (layout.mask_path(folder, scan), bool))
    damage = (FileNotFoundError, gzip.BadGzipFile, EOFError, ValueError, zlib.error)
    with errors_name_only(folder):
        try:
            volume, mask = (np.asarray(nibabel.load(path).dataobj, dtype=kind) for path, kind in paths)
        except (*damage, nibabel.filebasedimages.ImageFileError):
            raise StudyError(f"{place} is missing or damaged; {MEND}") from None  # the cause would name the file
    if not volume.shape == mask.shape == registration.GRID_SHAPE:
        raise StudyError(f"{place} is not on the MNI grid; {MEND}")
    return volume, mask


def remove(folder: Path, scan: str) -> None:
    """Removes what was made of a scan, if anything was."""
    with errors_name_only(folder):
        for kind in ("sidecar", "volume", "mask", "snapshot", "failure"):
            _path(folder, scan, kind).unlink(missing_ok=True)


def remove_stale(folder: Path, scans) -> None:
    """Removes our files of scans that left the shard, and what a killed job left half written; others' files stay."""
    wanted = {scan + suffix for scan in scans for suffix in layout.SUFFIXES.values()}
    for path in folder.iterdir():
        if path.name.endswith(tuple(layout.SUFFIXES.values())) and path.name not in wanted:
            path.unlink()


def tools(modules: Iterable[Path], packages: Iterable[str]) -> dict:
    """What a derivative depends on beside its inputs and settings: ``versions`` of packages, ``code`` of modules by digest."""
    known = versions(*sorted(packages))
    known.pop("fedbrain")  # its code counts, not its number
    return {"versions": known, "code": {path.name: code_digest(path.read_text()) for path in modules}}


def code_digest(text: str) -> str:
    """A digest of Python code that comments, layout and docstrings do not change."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return digest(ast.dump(tree))


def _write_nifti(values: np.ndarray, path: Path) -> int:
    """Writes NIfTI whose bytes depend on the values alone (no time or name in its gzip header); returns their count."""
    image = nibabel.Nifti1Image(values, registration.GRID_AFFINE)
    image.set_sform(registration.GRID_AFFINE, code="mni")
    image.set_qform(registration.GRID_AFFINE, code="mni")
    image.header.set_xyzt_units("mm")
    stream = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=stream, mtime=0) as zipped:
        zipped.write(image.to_bytes())
    with written_atomically(path) as temporary:
        temporary.write_bytes(stream.getbuffer())
    return stream.getbuffer().nbytes


def _path(folder: Path, scan: str, kind: str) -> Path:
    return folder / f"{scan}{layout.SUFFIXES[kind]}"
