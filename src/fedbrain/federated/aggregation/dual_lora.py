"""Two adapters beside every frozen layer, W0 + s_g B_g A_g + s_l B_l A_l: one is shared, one stays with the client.

Med-DualLoRA (arXiv 2603.10967) trains both and averages the global pair; FedOPAL (Tupper and Gagne, arXiv 2510.12741) keeps the two
orthogonal, so that what is general and what is a client's own separate. Of both we know the abstracts only, so everything that they
leave open is an option, and ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.averages import FedAvg
from fedbrain.federated.aggregation.rule import check_strength

if TYPE_CHECKING:
    from fedbrain.federated.local import LocalRound

TRAININGS = ("joint", "alternating")
HEADS = ("shared", "local")
PENALTIES = ("weights_a", "weights_b", "update", "representation")


@dataclass(frozen=True)
class MedDualLoRA(FedAvg):
    """The global pair is averaged by scans, the local one never leaves its client. Needs tuning ``dual_lora``.

    Args:
        training: "joint", both pairs in every step; "alternating", in each round first what stays, then what is shared, each for
            ``local_epochs`` epochs with the other at rest.
        head: "shared" or "local".
    """

    requires: ClassVar[tuple[str, ...]] = ("local",)
    training: str = "joint"
    head: str = "shared"
    private: Sequence[str] = field(default=("local",), kw_only=True)

    def __post_init__(self):
        for name, known in (("training", TRAININGS), ("head", HEADS)):
            if getattr(self, name) not in known:
                raise StudyError(
                    f"aggregation {self._name()}: {name} must be one of {', '.join(known)}, it is {getattr(self, name)!r}"
                )
        if "local" not in self.private:
            raise StudyError(
                f"aggregation {self._name()}: private must name local, the pair that stays with the client"
            )
        if self.head == "local" and "head" not in self.private:
            object.__setattr__(self, "private", (*self.private, "head"))

    def local(self) -> "LocalRound":
        from fedbrain.federated.local_dual import DualPairs

        return DualPairs(alternating=self.training == "alternating")

    def _name(self) -> str:
        return "med_dual_lora"


@dataclass(frozen=True)
class FedOPAL(MedDualLoRA):
    """Med-DualLoRA with a penalty on what the two pairs have in common. With strength 0 it is Med-DualLoRA, to the bit.

    Args:
        strength: lambda, the penalty's factor in the client's loss.
        penalty: of each layer, in [0, 1], the mean over layers counts (fedbrain.federated.orthogonality):
            "weights_a", "weights_b": overlap of the rows of A, of the columns of B; "update": cos^2 of the two products B A;
            "representation": mean over tokens of cos^2 between what the two adapters add.
    """

    strength: float = 0.1
    penalty: str = "update"

    def __post_init__(self):
        super().__post_init__()
        check_strength("fedopal", "strength", self.strength)
        if self.penalty not in PENALTIES:
            raise StudyError(
                f"aggregation fedopal: penalty must be one of {', '.join(PENALTIES)}, it is {self.penalty!r}"
            )

    def local(self) -> "LocalRound":
        from fedbrain.federated.local_dual import DualPairs

        penalty = self.penalty if self.strength else None
        return DualPairs(alternating=self.training == "alternating", penalty=penalty, strength=self.strength)

    def _name(self) -> str:
        return "fedopal"
