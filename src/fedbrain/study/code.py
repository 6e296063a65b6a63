"""Which files of this library a rule's result depends on, found by reading import statements.

A rule has a digest of these files among its parameters, so that an edit runs exactly the rules again whose
code it touches, and a fresh clone with other time stamps runs none. The registry is left out on purpose: a new line in it
changes no existing result, and the module behind a name that a job really uses is declared by that job. So are the encoders'
cards: their words are for readers, their numbers are held equal to the networks by tests. So are the extractors': what in
them decides about a volume, a checksum and packages' versions, is in each volume's key. And what flags scans: which of them
are dropped for it is found at each start, and is itself a parameter of the split (``cohorts.index.dropping``).
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
LEFT_OUT = {
    "fedbrain.registry",
    "fedbrain.errors",
    "fedbrain.logs",
    "fedbrain.models.cards",
    "fedbrain.imaging.extractor_cards",
    "fedbrain.imaging.outliers",
}


def closure(start: Iterable[str | Path]) -> list[Path]:
    """All modules of fedbrain that the given scripts or modules import, directly or not, and the given ones themselves.

    ``start`` holds dotted module names or paths of scripts. Imports inside functions count too. Sorted, absolute.
    """
    found: set[Path] = set()
    waiting = [_path_of(item) if isinstance(item, str) and "/" not in item else Path(item).resolve() for item in start]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(_imports(path))
    return sorted(found)


def fingerprint(start: Iterable[str | Path]) -> str:
    """A digest of names and contents of :func:`closure`; the same wherever the checkout lies."""
    return hashlib.sha256("\n".join(sorted(map(_stamp, closure(start)))).encode()).hexdigest()[:12]


@cache
def _stamp(path: Path) -> str:
    name = path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path.name
    return f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def _path_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # "from fedbrain.models import heads" may name a module or a thing within one
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in submodules if name.startswith("fedbrain.") and _path_of(name).is_file()}
            names.update(modules or {node.module})
            if modules and len(modules) < len(submodules):
                names.add(node.module)
    wanted = {name for name in names if name.split(".")[0] == "fedbrain" and name not in LEFT_OUT}
    paths = (_path_of(name) for name in wanted)
    # An __init__.py that only holds a docstring decides nothing.
    return tuple(path for path in paths if path.is_file() and not _is_docstring_only(path))


@cache
def _is_docstring_only(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)
