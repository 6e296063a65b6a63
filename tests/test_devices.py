import importlib.util
import logging

import pytest
import torch

from fedbrain.devices import FittingBatch, autocast, be_repeatable, compiles
from fedbrain.errors import StudyError


@pytest.fixture
def tf32_allowed():
    """Both flags on, and as they were afterwards; monkeypatch cannot put back torch's."""
    flags = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = True
    yield flags
    for flag, value in zip(flags, before):
        flag.allow_tf32 = value


def test_float32_on_a_gpu_is_not_tf32(tf32_allowed, monkeypatch):
    for flag in ("benchmark", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, flag, getattr(torch.backends.cudnn, flag))
    asked = []
    # Strictly: with warn_only, attention keeps its unrepeatable gradients. Needs no GPU.
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: asked.append(mode))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    be_repeatable("cpu")
    assert [flag.allow_tf32 for flag in tf32_allowed] == [True, True]
    be_repeatable("cuda", deterministic=False)
    assert [flag.allow_tf32 for flag in tf32_allowed] == [False, False]
    assert (torch.backends.cudnn.deterministic, asked) == (False, [])
    be_repeatable("cuda")
    assert (torch.backends.cudnn.deterministic, asked) == (True, [True])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), None])
def test_out_of_memory_halves_the_batch_for_good(error, caplog):
    tried = []

    def compute(parts):
        tried.append([len(part) for part in parts])
        if max(tried[-1]) > 2:
            if error:
                raise error
            torch.empty(2**50)  # what the CPU's allocator says of more than there is
        return torch.cat(list(parts))

    fitting = FittingBatch(8)
    with caplog.at_level(logging.WARNING):
        assert fitting.run(compute, torch.arange(7)).tolist() == list(range(7))
    assert tried == [[7], [3, 3, 1], [1] * 7]
    assert fitting.size == 1
    assert "out of memory" in caplog.text
    tried.clear()
    fitting.run(compute, torch.arange(2))
    assert tried == [[1, 1]]


def test_a_scan_that_does_not_fit_is_told_with_the_mend():
    def compute(parts):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="one scan at a time; give the job a larger GPU or more memory"):
        FittingBatch(4).run(compute, torch.arange(4))


def test_other_errors_are_not_taken_for_memory():
    def compute(parts):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        FittingBatch(4).run(compute, torch.arange(4))


def test_bfloat16_is_used_where_it_is_asked_for():
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    for precision, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast("cpu", precision):
            assert layer(x).dtype == kind


def test_networks_are_compiled_on_a_gpu_only_and_a_missing_compiler_is_told(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        assert not compiles("cpu")
    assert "not on the CPU" in caplog.text
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"training\.compile: .* triton .* compile: false"):
        compiles("cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert compiles("cuda")


@pytest.mark.parametrize("sign", ["CUBLAS_STATUS_ALLOC_FAILED when calling", "CUDA error: out of memory"])
def test_libraries_that_run_out_of_memory_are_understood(sign):
    tried = []

    def compute(parts):
        tried.append(len(parts))
        if len(parts) == 1:
            raise RuntimeError(sign)
        return "done"

    assert FittingBatch(2).run(compute, torch.arange(2)) == "done"
    assert tried == [1, 2]
