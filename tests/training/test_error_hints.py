"""Tests of rebar.training.error_hints."""

import errno

import pytest
import torch

from rebar.errors import RebarError
from rebar.training.error_hints import error_hints, evaluation_error_hints, hint_for

CUDA_OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CUDA_OOM, "gpu-out-of-memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors"), "gpu-out-of-memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "gpu-out-of-memory"),
        (torch.distributed.DistBackendError("NCCL error\nCuda failure 2 'out of memory'"), "gpu-out-of-memory"),
        (MemoryError(), "host-out-of-memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "host-out-of-memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host-out-of-memory"),
        (torch.distributed.DistBackendError("NCCL error"), "rank-lost"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hint_for_recognizes_errors(error: Exception, code: str) -> None:
    hint = hint_for(error, batch_size=256, precision="32")
    assert hint is not None
    assert hint.code == code


def test_hint_for_a_lost_rank_shows_nccls_last_error() -> None:
    error = torch.distributed.DistBackendError("NCCL error\nLast error:\nno route\nx")
    assert "Last error: no route" in str(hint_for(error, batch_size=256, precision="32"))


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "precision", "present", "absent"),
    [
        (
            256,
            1,
            "32",
            ["--accumulate 2", "micro-batches of 128", "bf16", "--training.batch_size 128"],
            ["--accumulate 4"],
        ),
        (256, 2, "fp16", ["micro-batches of 128", "--accumulate 4", "micro-batches of 64"], ["--training.precision"]),
        (3, 2, "fp16", ["--accumulate 3", "micro-batches of 1"], []),
        (2, 2, "fp16", ["--gradient-checkpointing"], ["--accumulate"]),
    ],
)
def test_hint_for_gpu_oom_suggests_options(
    batch_size: int, accumulate: int, precision: str, present: list[str], absent: list[str]
) -> None:
    hint = str(hint_for(CUDA_OOM, batch_size=batch_size, precision=precision, accumulate=accumulate))
    assert all(option in hint for option in [*present, "Tried to allocate 2.00 GiB"])
    assert not any(option in hint for option in absent)


def test_connection_errors_are_a_lost_rank_in_distributed_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("[tcp/pair.cc:537] Connection reset by peer")
    assert hint_for(error, batch_size=1, precision="32") is None
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    hint = hint_for(error, batch_size=1, precision="32")
    assert hint is not None
    assert hint.code == "rank-lost"


def test_error_hints_passes_other_errors_through() -> None:
    with pytest.raises(ZeroDivisionError), error_hints(batch_size=1, precision="32"):
        raise ZeroDivisionError
    with pytest.raises(RebarError, match=r"^mine$"), error_hints(batch_size=1, precision="32"):
        raise RebarError("mine", code="mine")
    with pytest.raises(RebarError) as error, error_hints(batch_size=1, precision="32"):
        raise MemoryError
    assert error.value.code == "host-out-of-memory"


def test_evaluation_error_hints_name_the_batch_size_of_the_evaluation() -> None:
    with (
        pytest.raises(RebarError, match=r"--validation\.batch_size 256") as error,
        error_hints(batch_size=64, precision="fp16"),
        evaluation_error_hints(batch_size=512, option="--validation.batch_size"),
    ):
        raise CUDA_OOM
    assert error.value.code == "gpu-out-of-memory"
    with pytest.raises(ZeroDivisionError), evaluation_error_hints(batch_size=1, option="--batch-size"):
        raise ZeroDivisionError
