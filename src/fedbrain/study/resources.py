"""Memory and run time that a job asks of the scheduler: functions of its work, and of the attempt.

The figures were measured on the phantom study and on real heads at 1 mm and carry a margin; a job
that was killed for memory or time is tried again with twice as much.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedbrain.imaging.extractor_cards import CARDS as EXTRACTORS

HEAD_MEGABYTES = {"linear": 1500, "ncc": 1500, "conv_s": 2000, "conv_l": 3000}
HEAD_SECONDS = {"linear": 0.02, "ncc": 0.02, "conv_s": 0.2, "conv_l": 0.8}  # a scan forward and backward on one core
HOPELESS = 20  # one scan in so many may be no head, and is given time for all tries (ours)
KEPT_MEGABYTES = {"output": 0.4, "volume": 8.4}  # a scan; tokens take 1.6
BLOCKS = 12  # of either encoder
BLOCK_SECONDS, BLOCK_MEGABYTES = 0.6, 100  # a scan forward and backward through one block on one core
RESNET_SECONDS, RESNET_MEGABYTES = 30, 4500  # a scan of 128^3 through ResNet18 on one core
GPU_SPEED = 20  # against one core: a cautious guess, not measured
GPU_MEGABYTES = 3000  # what CUDA's libraries take of the host's memory: a guess, too


@dataclass(frozen=True)
class CellWork:
    """What a cell has to do."""

    scans: int
    clients: int
    head: str  # as in the registry
    cut: str
    adapters: bool  # few parameters are trained
    downsample: int  # of ResNet18
    training: dict
    further_epochs: int = 0  # over all training scans, beyond the rounds: of models of the clients' own
    gpu: bool = False
    threads: int = 1

    @property
    def blocks(self) -> int:
        """Blocks of the encoder that each step computes."""
        if self.head == "resnet18" or self.cut == "output":
            return 0
        return BLOCKS if self.cut == "volume" else BLOCKS - int(self.cut.removeprefix("block"))

    @property
    def at_once(self) -> int:
        """Scans that go through the network at once."""
        return min(self.training["micro_batch"] or self.training["batch_size"], self.training["batch_size"])


def doubling(base: float, attempt: int) -> int:
    """``base``, twice as much at each further attempt, rounded up."""
    return int(-(-base * 2 ** (attempt - 1) // 1))


def preprocess_memory(extractor: str, attempt: int) -> int:
    """MB: the brain extractor, the head and its copies; a head of 0.7 mm has three times the voxels."""
    return doubling(EXTRACTORS[extractor].memory_mb, attempt)


def preprocess_minutes(extractor: str, scans: int, attempt: int) -> int:
    """Minutes: up to a minute a scan on one core of a slow machine with most extractors, the start, and hopeless scans.

    A scan that is no head is tried in many orientations: with the quick extractors in all, each for a quarter of that minute
    at most, with the slow ones, whose minutes are nearly all the extraction's, in a few.
    """
    card = EXTRACTORS[extractor]
    hopeless = card.minutes * (0.25 if card.orientations == 24 else 1) * card.orientations
    return doubling(5 + card.minutes * scans + hopeless * -(-scans // HOPELESS), attempt)


def embed_memory(cut: str, batch_size: int, attempt: int) -> int:
    """MB: the encoder (93 M parameters), activations and volumes by batch; scans are written one by one."""
    return doubling(1500 if cut == "volume" else 3000 + 500 * batch_size, attempt)


def embed_minutes(scans: int, attempt: int) -> int:
    """Minutes: up to six seconds a scan without a GPU, and the start."""
    return doubling(5 + 0.1 * scans, attempt)


def train_memory(cell: CellWork, attempt: int) -> int:
    """MB: the model, its gradients and optimizer, activations by scans at once, and the models of server and clients.

    The inputs are memory-mapped and not counted: the system keeps of them what it has room for.
    """
    if cell.head == "resnet18":
        model, activations = 133, RESNET_MEGABYTES / cell.downsample**3 * cell.at_once
    else:
        model, activations = (0 if cell.adapters else 31 * cell.blocks), BLOCK_MEGABYTES * cell.blocks * cell.at_once
    if cell.gpu:
        activations = GPU_MEGABYTES  # they are on the GPU; its libraries are not
    # Trained: parameters, gradients, two moments; the server's, the best round's and their copies in the checkpoint; of every
    # client its reply as sent and as read, and with FedCE what it keeps. Measured: 4.6 GB for ResNet18 with four clients.
    return doubling(HEAD_MEGABYTES.get(cell.head, 3000) + activations + model * (8 + 4 * cell.clients), attempt)


def train_minutes(cell: CellWork, attempt: int) -> int:
    """Minutes: every scan in every epoch of every round, on one core."""
    if cell.head == "resnet18":
        step = RESNET_SECONDS / cell.downsample**3
    else:
        step = HEAD_SECONDS.get(cell.head, 0.8) + BLOCK_SECONDS * cell.blocks
    scans = cell.scans * (cell.training["rounds"] * cell.training["local_epochs"] + cell.further_epochs)
    faster = GPU_SPEED if cell.gpu else max(1, 0.7 * cell.threads)
    return doubling(5 + scans * step / faster / 60, attempt)


def evaluate_memory(cells: int, attempt: int) -> int:
    """MB: the resamples of one cell at a time."""
    return doubling(1500 + 2 * cells, attempt)


def evaluate_minutes(cells: int, attempt: int) -> int:
    """Minutes: a few seconds a cell."""
    return doubling(5 + 0.25 * cells, attempt)


EXPLAIN_SECONDS = {"forward": 2.5, "step": 6}  # a volume through a whole encoder on one core, and with its gradient


def explain_memory(batch_size: int, attempt: int) -> int:
    """MB: the encoder up to three times (a copy is scrambled), what a gradient through all of its blocks keeps, and maps."""
    return doubling(3000 + 1500 * batch_size, attempt)


def explain_minutes(options: Mapping, scans: int, *, gpu: bool, threads: int, attempt: int) -> int:
    """Minutes: every method on every scan, and again for each of four stages of scrambled weights."""
    blocks = (-(-128 // options["stride"])) ** 3
    seconds = {
        "integrated_gradients": EXPLAIN_SECONDS["step"] * options["steps"],
        "occlusion": EXPLAIN_SECONDS["forward"] * blocks,
        "rollout": 2 * EXPLAIN_SECONDS["forward"],
    }
    maps = scans + 2 * 4 * options["randomised"]
    faster = GPU_SPEED if gpu else max(1, 0.7 * threads)
    return doubling(10 + maps * sum(seconds[method] for method in options["methods"]) / faster / 60, attempt)
