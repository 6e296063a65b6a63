"""Where a job computes, said out loud."""

import ctypes
import logging
import os
from collections.abc import Callable, Sequence

from fedbrain.errors import StudyError

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


def keep_freed_memory() -> None:
    """Has the allocator keep large freed blocks for reuse instead of giving each back to the kernel.

    Volumes of tens of MB are allocated and freed all the time; without this every one of them is mapped and zeroed anew.
    Measured on four phantoms: 10.1 to 8.8 CPU seconds a scan in preprocessing, for 0.35 GB more. Same results. Without
    effect on systems whose C library is not glibc.
    """
    try:
        tune = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    tune(mmap_threshold, 1 << 30)
    tune(trim_threshold, 1 << 30)


PRECISIONS = ("float32", "bfloat16")
SIGNS_OF_FULL_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def autocast(device: str, precision: str):
    """The context in which a network computes: for "bfloat16" torch's autocast, weights and sums staying float32."""
    import torch

    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def be_repeatable(device: str, *, deterministic: bool = True) -> None:
    """Same seed, same GPU: same bits, as far as the libraries offer it. On the CPU nothing has to be done.

    TF32 is switched off in either case, so that float32 means on a GPU what it means on the CPU.
    """
    import torch

    if torch.device(device).type != "cuda":
        return
    # cuDNN rounds float32 inputs to TF32 (10 bits of mantissa) by default.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        # Not with warn_only: attention would then take its fast gradients, which are not repeatable, and only warn.
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # every such tensor here is filled by us


class FittingBatch:
    """How many scans go through a network at once: halved, for good, whenever memory runs out.

    Memory depends on network, precision and machine; what fits is found out by trying. On a GPU running out is an error that
    can be caught. On the CPU it mostly is not: the kernel grants memory that it does not have and stops the process later.
    """

    def __init__(self, size: int):
        self.size = size

    def run(self, compute: "Callable[[Sequence], object]", index):
        """``compute`` of the parts of ``index`` (a tensor), each of at most ``size``; again with half where memory ran out.

        ``compute`` must start over each time. Raises MemoryError where a single scan does not fit.
        """
        import torch

        while True:
            try:
                return compute(index.split(self.size))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if min(self.size, len(index)) == 1:
                    raise MemoryError(
                        "memory does not suffice for one scan at a time; give the job a larger GPU or more memory, or let "
                        "it compute in bfloat16"
                    ) from error
                self.size = min(self.size, len(index)) // 2
                logger.warning("out of memory; going on with %d scan(s) at a time", self.size)
            # Outside the handler, which would keep the failed pass alive through its traceback.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def compiles(device: str) -> bool:
    """Whether a network is compiled where the config asks for it: on a GPU; on the CPU it was measured not to pay.

    Raises StudyError where torch's compiler for GPUs is not installed.
    """
    from importlib.util import find_spec

    import torch

    if torch.device(device).type != "cuda":
        logger.warning("training.compile: not on the CPU, where compiled steps were slower (docs/performance.md)")
        return False
    if find_spec("triton") is None:
        raise StudyError("training.compile: torch needs the package triton on a GPU; install it, or set compile: false")
    return True


def _out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS_OF_FULL_MEMORY)
