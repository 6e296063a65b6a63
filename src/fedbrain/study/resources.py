"""Memory and run time that a job asks of the scheduler: functions of its work, and of the attempt.

The figures were measured on the phantom study and on real heads at 1 mm and carry a margin; a job
that was killed for memory or time is tried again with twice as much.
"""

TRAINING_MEGABYTES = {"linear": 1500, "conv_s": 2000, "conv_l": 3000}
EMBEDDING_MEGABYTES = 0.4  # one scan: 384 x 8 x 8 x 8 values of 2 bytes
SECONDS_PER_STEP = {"linear": 0.02, "conv_s": 0.2, "conv_l": 0.8}  # one scan forward and backward on one core


def doubling(base: float, attempt: int) -> int:
    """``base``, twice as much at each further attempt, rounded up."""
    return int(-(-base * 2 ** (attempt - 1) // 1))


def preprocess_memory(attempt: int) -> int:
    """MB: networks of the brain extractor, the head and its copies; a head of 0.7 mm has three times the voxels."""
    return doubling(3500, attempt)


def preprocess_minutes(scans: int, attempt: int) -> int:
    """Minutes: up to a minute a scan on one core of a slow machine, and the start."""
    return doubling(5 + scans, attempt)


def embed_memory(scans: int, batch_size: int, attempt: int) -> int:
    """MB: the encoder (93 M parameters), activations by batch, the shard's embeddings."""
    return doubling(2500 + 500 * batch_size + EMBEDDING_MEGABYTES * scans, attempt)


def embed_minutes(scans: int, attempt: int) -> int:
    """Minutes: up to six seconds a scan without a GPU, and the start."""
    return doubling(5 + 0.1 * scans, attempt)


def train_memory(scans: int, head: str, attempt: int) -> int:
    """MB: the head with its gradients and optimizer, and all embeddings twice: ``centralized`` pools copies of them.

    Federated cells and ``local`` hold them once.
    """
    base = TRAINING_MEGABYTES.get(head, max(TRAINING_MEGABYTES.values()))
    return doubling(base + 2 * EMBEDDING_MEGABYTES * scans, attempt)


def train_minutes(scans: int, rounds: int, local_epochs: int, head: str, attempt: int) -> int:
    """Minutes: every scan in every epoch of every round, on one core."""
    step = SECONDS_PER_STEP.get(head, max(SECONDS_PER_STEP.values()))
    return doubling(5 + scans * rounds * local_epochs * step / 60, attempt)


def evaluate_memory(cells: int, attempt: int) -> int:
    """MB: the resamples of one cell at a time."""
    return doubling(1500 + 2 * cells, attempt)


def evaluate_minutes(cells: int, attempt: int) -> int:
    """Minutes: a few seconds a cell."""
    return doubling(5 + 0.25 * cells, attempt)
