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


def explanation(error: BaseException, *, batch_size: int, precision: str) -> str | None:
    """The message for a user, or None for an error that is our own."""
    text = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError):
        return _gpu_memory(error, batch_size, precision)
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
            f"another process of this run is gone, or does not answer ({str(error).splitlines()[0]}). The first error "
            "above, if any, is its reason; without one it was killed (by a lack of memory, perhaps: see dmesg). "
            "The same command goes on from the last checkpoint"
        )
    return None


def _gpu_memory(error: BaseException, batch_size: int, precision: str) -> str:
    smaller = max(1, batch_size // 2)
    advice = f"lower --training.batch_size to {smaller} (and --lr with it, if the global batch shrinks)"
    if precision == "32":
        advice += ", or use --training.precision bf16 (fp16 on older GPUs), which takes about half"
    return (
        f"out of GPU memory with batches of {batch_size} in precision {precision}: {advice}; what else is on this "
        f"GPU, nvidia-smi shows. ({str(error).splitlines()[0]})"
    )


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def explained(*, batch_size: int, precision: str) -> Iterator[None]:
    """Turn what :func:`explanation` knows into a RebarError."""
    try:
        yield
    except RebarError:
        raise
    except Exception as error:
        message = explanation(error, batch_size=batch_size, precision=precision)
        if message is None:
            raise
        raise RebarError(message) from error
