"""Which tensors of a model travel, which stay with a client, which nobody trains."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # batch and instance norms

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.rule import AdaptedLayer, Rule
from fedbrain.federated.kinds import KINDS, absent, named

ROLES = ("shared", "private", "frozen", "merged")
NORMS = (nn.LayerNorm, nn.GroupNorm, _NormBase)


@dataclass(frozen=True)
class Sharing:
    """For each tensor name the first matching pattern (as in a shell, ``*`` for anything) gives its role.

    - ``shared``: trained by the clients, sent both ways, aggregated;
    - ``private``: trained by each client for itself, kept there between rounds, never sent;
    - ``frozen``: the same everywhere from the start, never trained, never sent;
    - ``merged``: never trained by a client, but changed by the server, who sends the change.

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
    def of(cls, model: nn.Module, rule: Rule | None = None) -> "Sharing":
        """What is trained travels, but for what ``rule`` declares otherwise.

        Trained are parameters that require gradients, and the buffers beside them. Buffers count as trained where a parameter
        of the same module is (running statistics of a batch norm), or where the model has no trained parameter at all and
        they are what it learns. Counters (integers) are no part of a model.

        Raises StudyError where the rule names something that the model does not train, or leaves nothing to travel.
        """
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        modules = {name.rpartition(".")[0] for name in trained}
        parameters = dict(model.named_parameters())
        buffers = [n for n, tensor in model.state_dict().items() if n not in parameters and tensor.is_floating_point()]
        trained |= {name for name in buffers if not trained or name.rpartition(".")[0] in modules}
        roles = dict.fromkeys(sorted(trained), "shared")
        if rule is not None:
            norms = _norms(model)
            for entries, role in ((rule.requires, "shared"), (rule.frozen, "frozen"), (rule.private, "private")):
                for entry in _checked(rule, entries):
                    found = [name for name in named([entry], roles, norms) if roles[name] in ("shared", role)]
                    if not found:
                        raise StudyError(f"aggregation {type(rule).__name__}: {absent(entry)}")
                    roles |= dict.fromkeys(found, role)
            if "shared" not in roles.values():
                raise StudyError(
                    f"aggregation {type(rule).__name__}: private leaves nothing that travels; that is what local is for"
                )
            roles |= dict.fromkeys(rule.merged, "merged")
        return cls((*roles.items(), ("*", "frozen")))


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """The pairs of low-rank factors of a model by the name of A, and the rows of the frozen weight that each stands beside.

    An adapter on a third of a fused projection (fedbrain.models.adapters) stands beside that third of its weight.
    """
    layers = {}
    for path, module in model.named_modules():
        for adapter in getattr(module, "lora_A", ()):
            weight, rows = f"{path}.base_layer.weight", (0, module.out_features)
            owner, _, part = path.rpartition(".parts.")
            if part in ("q", "k", "v") and hasattr(model.get_submodule(owner), "fused"):
                bounds = range(0, 4 * module.out_features, module.out_features)
                weight, rows = f"{owner}.fused.weight", dict(zip("qkv", pairwise(bounds)))[part]
            b = f"{path}.lora_B.{adapter}.weight"
            layers[f"{path}.lora_A.{adapter}.weight"] = AdaptedLayer(b, weight, rows, module.scaling[adapter])
    return layers


def _norms(model: nn.Module) -> set[str]:
    """Names of the parameters and statistics of normalization layers."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, NORMS)
        for name in module.state_dict()
    }


def _checked(rule: Rule, entries: Sequence[str]) -> Sequence[str]:
    if isinstance(entries, str) or not all(isinstance(entry, str) for entry in entries):
        raise StudyError(
            f"aggregation {type(rule).__name__}: private must be a list of {', '.join(KINDS)} or patterns of tensor names"
        )
    return entries
