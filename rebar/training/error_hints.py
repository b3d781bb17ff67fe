"""What went wrong outside our code, in words, with what to do about it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rebar.errors import RebarError

_PEER_GONE = (
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


def explanation(error: BaseException, *, batch_size: int, precision: str, accumulate: int = 1) -> str | None:
    """The message for a user, or None for an error that is our own.

    ``batch_size`` images a process are computed in ``accumulate`` pieces.
    """
    text = str(error).lower()
    if is_gpu_memory(error):
        return _gpu_memory(error, batch_size, precision, accumulate)
    if isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError))
        and (any(words in text for words in _HOST_MEMORY) or getattr(error, "errno", None) == errno.ENOMEM)
    ):
        return (
            f"out of main memory with batches of {batch_size}: lower --training.batch_size or --num-workers, or "
            "start fewer processes on this machine; --in-memory 0 reads the data through a smaller cache"
        )
    if isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _PEER_GONE) and _is_distributed()
    ):
        return (
            f"another process of this run is gone, or does not answer ({_gist(error)}). The first error "
            "above, if any, is its reason; without one it was killed (by a lack of memory, perhaps: see dmesg). "
            "The same command goes on from the last checkpoint"
        )
    return None


def is_gpu_memory(error: BaseException) -> bool:
    """Whether a GPU had too little memory: for a tensor, for a library, or for NCCL."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _GPU_MEMORY)
    )


def _gist(error: BaseException) -> str:
    """The first line of an error, and what NCCL says further below."""
    lines = str(error).splitlines() or [type(error).__name__]
    last = [i for i, line in enumerate(lines) if line.startswith("Last error")]
    return " ".join([lines[0], *lines[last[0] : last[0] + 2]] if last else lines[:1])


def _gpu_memory(error: BaseException, batch_size: int, precision: str, accumulate: int) -> str:
    pieces = min(2 * accumulate, batch_size)
    smaller = max(1, batch_size // 2)
    at_once = "" if accumulate == 1 else f", {-(-batch_size // accumulate)} at once"
    advice = []
    if pieces > accumulate:
        advice.append(
            f"--accumulate {pieces} computes the same step in pieces of {-(-batch_size // pieces)} images, at the "
            "same --lr"
        )
    if precision == "32":
        advice.append("--training.precision bf16 (fp16 on older GPUs) takes about half")
    advice.append("--gradient-checkpointing takes less than half, for a third more time")
    advice.append(f"--training.batch_size {smaller} is a smaller step, with --lr halved as well")
    return (
        f"out of GPU memory with batches of {batch_size}{at_once}, in precision {precision}. "
        f"{'; '.join(advice)}. What else is on this GPU, nvidia-smi shows. ({_gist(error)})"
    )


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def error_hints(*, batch_size: int, precision: str, accumulate: int = 1) -> Iterator[None]:
    """Turn what :func:`explanation` knows into a RebarError."""
    try:
        yield
    except RebarError:
        raise
    except Exception as error:
        message = explanation(error, batch_size=batch_size, precision=precision, accumulate=accumulate)
        if message is None:
            raise
        raise RebarError(message) from error


@contextmanager
def evaluation_error_hints(*, batch_size: int, option: str) -> Iterator[None]:
    """Turn a lack of GPU memory into a RebarError; ``option`` sets the ``batch_size``, per process."""
    try:
        yield
    except Exception as error:
        if not is_gpu_memory(error):
            raise
        raise RebarError(
            f"out of GPU memory while evaluating batches of {batch_size}: {option} {max(1, batch_size // 2)} gives the "
            f"same result in less. What else is on this GPU, nvidia-smi shows. ({_gist(error)})"
        ) from error
