"""FedAvg with local fine-tuning: the simplest personalised model, and hard to beat."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.averages import FedAvg

if TYPE_CHECKING:
    from fedbrain.federated.local import LocalRound


@dataclass(frozen=True)
class FedAvgFT(FedAvg):
    """FedAvg, and at its end a model for each client: the chosen global one, trained on with the client's own scans (Yu et al.,
    "Salvaging Federated Learning by Local Adaptation", arXiv 2002.04758; Collins et al., "FedAvg with Fine Tuning", NeurIPS 2022).

    All messages, and the choice of the round, are FedAvg's.

    Args:
        personal_epochs: epochs of each client over its training scans. The default is ours.
    """

    own_model: ClassVar[str] = "end"
    personal_epochs: int = 5

    def __post_init__(self):
        epochs = self.personal_epochs
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise StudyError(
                f"aggregation fedavg_ft: personal_epochs must be a whole number from 1 on, it is {epochs!r}"
            )
        if self.private:
            raise StudyError("aggregation fedavg_ft: all of a client's own model stays with it; leave private out")

    def local(self) -> "LocalRound":
        from fedbrain.federated.local_fine_tuning import FineTuning

        return FineTuning(self.personal_epochs)
