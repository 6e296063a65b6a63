"""Which tensors of a model travel: one declaration per tuning."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

ROLES = ("shared", "private", "frozen")


@dataclass(frozen=True)
class Sharing:
    """For each tensor name the first matching pattern (as in a shell, ``*`` for anything) gives its role.

    - ``shared``: trained by the clients, sent both ways, aggregated;
    - ``private``: trained by each client for itself, kept there between rounds, never sent;
    - ``frozen``: the same everywhere from the start, never trained, never sent.

    Raises ValueError for an unknown role, and from ``role`` for a name that no pattern covers.
    """

    patterns: tuple[tuple[str, str], ...]

    def __post_init__(self):
        for pattern, role in self.patterns:
            if role not in ROLES:
                raise ValueError(f"sharing of {pattern!r}: role {role!r} is unknown; known: {', '.join(ROLES)}")

    def role(self, name: str) -> str:
        """The role of the tensor called ``name``."""
        for pattern, role in self.patterns:
            if fnmatchcase(name, pattern):
                return role
        raise ValueError(f"sharing: no pattern covers the tensor {name!r}")

    def select(self, names: Iterable[str], role: str) -> list[str]:
        """Those of ``names`` that have ``role``, in their order."""
        return [name for name in names if self.role(name) == role]


FROZEN = Sharing((("encoder.*", "frozen"), ("*", "shared")))  # the encoder as it is, only the head trained
