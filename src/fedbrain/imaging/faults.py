"""Tells the machine's faults from a scan's: they must stop the job, so that it is tried again, and cost no volume."""

# What PyTorch, ITK and C++ say where they have no exception type of their own for it (TorchScript wraps all errors).
SIGNS = ("CUDA", "cuDNN", "CUDNN", "out of memory", "not enough memory", "allocate memory", "bad_alloc")


def is_of_machine(error: BaseException) -> bool:
    """Whether memory ran out or the accelerator failed (torch's OutOfMemoryError and AcceleratorError included)."""
    # By text, since both of torch's are RuntimeErrors and this module shall not import torch for them.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    )
