"""Which tensors of a model travel."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

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

    @classmethod
    def of(cls, model: nn.Module) -> "Sharing":
        """What travels is what is trained: parameters that require gradients, and the buffers beside them.

        Buffers count as trained where a parameter of the same module is (running statistics of a batch norm), or where the model
        has no trained parameter at all and they are what it learns. Counters (integers) are no part of a model.
        """
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        modules = {name.rpartition(".")[0] for name in trained}
        parameters = dict(model.named_parameters())
        buffers = [n for n, tensor in model.state_dict().items() if n not in parameters and tensor.is_floating_point()]
        trained |= {name for name in buffers if not trained or name.rpartition(".")[0] in modules}
        return cls((*((name, "shared") for name in sorted(trained)), ("*", "frozen")))
