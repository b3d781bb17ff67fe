"""Errors from below, in words that say what to do."""

import errno

import pytest
import torch

from rebar.errors import RebarError
from rebar.training import error_hints as error_hints_module
from rebar.training.error_hints import error_hints, evaluation_error_hints, explanation


@pytest.mark.parametrize(
    ("error", "precision", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "32", "--training.batch_size 128 is a"),
        (torch.OutOfMemoryError("CUDA out of memory."), "32", "--accumulate 2 computes the same step in pieces of 128"),
        (torch.OutOfMemoryError("CUDA out of memory."), "32", "--training.precision bf16"),
        (MemoryError(), "32", "out of main memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "32", "out of main memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "32", "--num-workers"),
        (torch.distributed.DistBackendError("NCCL error"), "32", "another process of this run is gone"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors"), "32", "out of GPU memory with batches of 256"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "32", "out of GPU memory"),
        (
            torch.distributed.DistBackendError("NCCL error\nLast error:\nCuda failure 2 'out of memory'"),
            "32",
            "GPU mem",
        ),
        (torch.distributed.DistBackendError("NCCL error\nLast error:\nno route\nx"), "32", "Last error: no route)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_is_explained(error: Exception, precision: str, expected: str) -> None:
    message = explanation(error, batch_size=256, precision=precision)
    assert message is not None
    assert expected in message


def test_half_precision_is_not_advised_twice() -> None:
    message = explanation(torch.OutOfMemoryError("out of memory"), batch_size=256, precision="bf16")
    assert message is not None
    assert "--training.precision" not in message


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "expected"),
    [
        (
            256,
            2,
            "batches of 256, 128 at once, in precision fp16. --accumulate 4 computes the same step in pieces of 64",
        ),
        (3, 2, "--accumulate 3 computes the same step in pieces of 1 images"),
    ],
)
def test_more_pieces_are_advised_than_there_are(batch_size: int, accumulate: int, expected: str) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")
    message = explanation(error, batch_size=batch_size, precision="fp16", accumulate=accumulate)
    assert expected in str(message)
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB)" in str(message)


def test_single_images_cannot_be_cut() -> None:
    message = explanation(torch.OutOfMemoryError("out of memory"), batch_size=2, precision="fp16", accumulate=2)
    assert "--accumulate" not in str(message)
    assert "--gradient-checkpointing" in str(message)


def test_a_peer_is_looked_for_in_distributed_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("[tcp/pair.cc:537] Connection reset by peer")
    assert explanation(error, batch_size=1, precision="32") is None
    monkeypatch.setattr(error_hints_module, "_is_distributed", lambda: True)
    assert "the same command goes on" in str(explanation(error, batch_size=1, precision="32")).lower()


def test_our_own_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), error_hints(batch_size=1, precision="32"):
        raise ZeroDivisionError
    with pytest.raises(RebarError, match=r"^mine$"), error_hints(batch_size=1, precision="32"):
        raise RebarError("mine")
    with pytest.raises(RebarError, match="out of main memory"), error_hints(batch_size=1, precision="32"):
        raise MemoryError


def test_an_evaluation_has_a_batch_size_of_its_own() -> None:
    with (
        pytest.raises(RebarError, match=r"evaluating batches of 512: --validation\.batch_size 256 gives the same"),
        error_hints(batch_size=64, precision="fp16"),
        evaluation_error_hints(batch_size=512, option="--validation.batch_size"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    with pytest.raises(ZeroDivisionError), evaluation_error_hints(batch_size=1, option="--batch-size"):
        raise ZeroDivisionError
