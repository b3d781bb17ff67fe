"""Replace common errors of torch, CUDA and the operating system with a RebarError that contains advice."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rebar.errors import RebarError

_RANK_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
    "nccl communicator was aborted",
    "remote process exited",
    "timed out waiting",
    "watchdog",
    "timeout",
)
_HOST_MEMORY = ("can't allocate memory", "not enough memory", "cannot allocate memory")
_GPU_MEMORY = (
    "cuda out of memory",
    "cuda error: out of memory",
    "_status_alloc_failed",
    "cuda failure 2 'out of memory'",
)


@contextmanager
def error_hints(*, batch_size: int, precision: str, accumulate: int = 1) -> Iterator[None]:
    """Raise a RebarError in place of an error that :func:`hint_for` recognizes."""
    try:
        yield
    except RebarError:
        raise
    except Exception as error:
        hint = hint_for(error, batch_size=batch_size, precision=precision, accumulate=accumulate)
        if hint is None:
            raise
        raise hint from error


@contextmanager
def evaluation_error_hints(*, batch_size: int, option: str) -> Iterator[None]:
    """Raise a RebarError if the GPU runs out of memory. ``option`` is the flag that sets ``batch_size``, per GPU."""
    try:
        yield
    except Exception as error:
        if not is_gpu_oom(error):
            raise
        raise RebarError(
            f"evaluation: out of GPU memory with batches of {batch_size}. Pass {option} "
            f"{max(1, batch_size // 2)}, which has the same result. nvidia-smi shows what else uses this "
            f"GPU. ({_first_line(error)})",
            code="gpu-out-of-memory",
        ) from error


def hint_for(error: BaseException, *, batch_size: int, precision: str, accumulate: int = 1) -> RebarError | None:
    """Return a RebarError with advice for a recognized error, or None for any other error.

    ``batch_size`` is per GPU, split into ``accumulate`` micro-batches.
    """
    text = str(error).lower()
    if is_gpu_oom(error):
        return RebarError(_gpu_oom_message(error, batch_size, precision, accumulate), code="gpu-out-of-memory")
    if isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError))
        and (any(words in text for words in _HOST_MEMORY) or getattr(error, "errno", None) == errno.ENOMEM)
    ):
        return RebarError(
            f"training: out of main memory with batches of {batch_size}. Lower --training.batch_size or --num-workers, "
            "or start fewer ranks on this node.",
            code="host-out-of-memory",
        )
    if isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _RANK_LOST) and _is_distributed()
    ):
        return RebarError(
            f"training: another rank exited or does not respond ({_first_line(error)}). Its error, if any, is printed "
            "above; without one it was killed, for example for using too much memory (see dmesg). The same command "
            "resumes from the last checkpoint.",
            code="rank-lost",
        )
    return None


def is_gpu_oom(error: BaseException) -> bool:
    """Return whether the error is a GPU out-of-memory error of torch's allocator, a CUDA library or NCCL."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _GPU_MEMORY)
    )


def _first_line(error: BaseException) -> str:
    """Return the first line of an error, and NCCL's "Last error" if it has one."""
    lines = str(error).splitlines() or [type(error).__name__]
    last = [i for i, line in enumerate(lines) if line.startswith("Last error")]
    return " ".join([lines[0], *lines[last[0] : last[0] + 2]] if last else lines[:1])


def _gpu_oom_message(error: BaseException, batch_size: int, precision: str, accumulate: int) -> str:
    more = min(2 * accumulate, batch_size)
    micro = "" if accumulate == 1 else f" in micro-batches of {-(-batch_size // accumulate)}"
    advice = []
    if more > accumulate:
        advice.append(
            f"--accumulate {more} computes the same step in micro-batches of {-(-batch_size // more)}, at the same --lr"
        )
    if precision == "32":
        advice.append("--training.precision bf16 (fp16 on older GPUs) needs about half the memory")
    advice.append("--gradient-checkpointing needs less than half, for a third more time")
    advice.append(f"--training.batch_size {max(1, batch_size // 2)} takes smaller steps; halve --lr as well")
    return (
        f"training: out of GPU memory with batches of {batch_size}{micro}, in precision {precision}. "
        f"{'; '.join(advice)}. nvidia-smi shows what else uses this GPU. ({_first_line(error)})"
    )


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
