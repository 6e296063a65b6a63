"""Kinds of tensors by which a rule names what it treats apart. No torch here: the config is checked with it."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

BY_NAME = {"head": "head.*", "lora_A": "*.lora_A.*", "lora_B": "*.lora_B.*", "local": "*.lora_?.local.*"}
KINDS = (*BY_NAME, "norm")  # norm is known by the layers, not by names
ADAPTERS = ("lora_A", "lora_B", "local")  # kinds that a tuning has or has not
ADDED = ("local",)  # kinds that add nothing at their start: what is left without them is a model
WHERE = {
    "norm": "use a head or a tuning that trains normalization layers (conv_s, conv_l; norm, last_k, full)",
    "lora_A": "use it with tuning lora",
    "lora_B": "use it with tuning lora",
    "local": "use it with tuning dual_lora",
}


def named(entries: Iterable[str], names: Iterable[str], norms: Iterable[str] = ()) -> list[str]:
    """Those of ``names`` that one of the kinds or patterns covers; ``norms`` are the names of the kind norm."""
    norms, patterns = set(norms), [BY_NAME.get(entry, entry) for entry in entries]
    return [
        name
        for name in names
        if any(name in norms if pattern == "norm" else fnmatchcase(name, pattern) for pattern in patterns)
    ]


def absent(entry: str) -> str:
    """What to say where a model has nothing of a kind or pattern that it trains."""
    mend = WHERE.get(entry, f"kinds are {', '.join(KINDS)}; all else is a pattern of tensor names")
    return f"the model trains nothing called {entry!r}; {mend}"
