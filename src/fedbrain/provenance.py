"""What made a file: versions, parameters, inputs. Written beside each stage's output."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from fedbrain.tables import write_text


def digest(value: object) -> str:
    """A short SHA-256 of a JSON-like value; independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content, read in blocks of 1 MiB."""
    result = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            result.update(block)
    return result.hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, fedbrain and the named packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("fedbrain", *packages)}


def write_provenance(path: str | Path, *, packages: tuple[str, ...], parameters: Mapping, inputs: Mapping) -> None:
    """Writes the JSON sidecar of a stage's output."""
    record = {"versions": versions(*packages), "parameters": dict(parameters), "inputs": dict(inputs)}
    write_text(json.dumps(record, indent=2, sort_keys=True, default=str) + "\n", path)
