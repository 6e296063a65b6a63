"""Where a job computes, said out loud."""

import logging
import os

logger = logging.getLogger(__name__)


def pick_device(gpu: int) -> str:
    """``"cuda"`` if the job was given a GPU and there is one, else ``"cpu"``; the choice is logged.

    A rule that asked for a GPU on a machine without one runs on the CPU and says so; a rule that asked for none
    never touches one that happens to be there, since the scheduler may have given it to somebody else.
    """
    import torch

    if not gpu:
        logger.info("device: cpu (the config gives this rule no GPU)")
        return "cpu"
    if torch.cuda.is_available():
        logger.info("device: cuda (%s)", torch.cuda.get_device_name(0))
        return "cuda"
    logger.warning(
        "device: cpu; a GPU was asked for, but this machine shows none: slower, same results within rounding"
    )
    return "cpu"


def set_threads(threads: int) -> None:
    """Holds torch, ITK and OpenMP to ``threads``; call it before antspyx is imported, which reads its setting once."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
