"""Rules that differ from FedAvg only in which factor of an adapter is trained, and which is sent.

Where one factor is the same for all clients, the mean of the other gives the mean of the products: FFA-LoRA and RoLoRA average
exactly. Adapters start with B = 0, so that A gets no gradient before B has moved.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedbrain.federated.aggregation.averages import FedAvg
from fedbrain.federated.aggregation.rule import always_private


@dataclass(frozen=True)
class FFALoRA(FedAvg):
    """A stays as it was drawn, the same on every client; B is trained and averaged (Sun et al., ICLR 2024).

    Of an adapter B alone travels: out x r numbers, where both factors are (in + out) x r; that is half of them where in = out.
    """

    requires: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B")
    frozen: ClassVar[tuple[str, ...]] = ("lora_A",)


@dataclass(frozen=True)
class FedSALoRA(FedAvg):
    """A is averaged, B stays with each client (Guo et al., ICLR 2025): what is common, and what is a client's own.

    What else ``private`` names stays, too.
    """

    requires: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B")

    def __post_init__(self):
        always_private(self, "lora_B")


@dataclass(frozen=True)
class RoLoRA(FedAvg):
    """B and A are trained and sent by turns, round by round (Chen et al., arXiv 2409.02346).

    B in the first round (ours: A has no gradient while B is 0). Both go down in every round, so that a client that was away has
    what it needs; up goes what was trained.
    """

    requires: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B")

    def resting(self, round: int) -> tuple[str, ...]:
        return ("lora_A",) if round % 2 else ("lora_B",)
