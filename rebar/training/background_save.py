"""A checkpoint is taken in the loop and written beside it.

Taking it copies what training goes on to change to host memory, which is quick. Writing it and making it durable takes
as long as the disk does, on a thread of its own.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class BackgroundSave:
    """Writes one checkpoint at a time. What fails is raised, once, by the next call that looks."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rebar-save")
        self._under_way: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Call ``write`` on the thread, once the one before has ended. Raises what that one failed with."""
        self.wait()
        self._under_way = self._thread.submit(write)

    def raise_failure(self) -> None:
        """Raise what the last write failed with, if it has ended. Never waits."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written. Raises what the last write failed with."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()


def host_copy(content: Any) -> Any:
    """``content`` with its own tensors, on the CPU, in its own dicts, lists and tuples.

    From a GPU they are copied to pinned memory, all of them at once.
    """
    copy = _copy(content)
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copy


def _copy(content: Any) -> Any:
    if isinstance(content, torch.Tensor):
        if content.device.type == "cpu":
            return content.detach().clone()
        pinned = torch.empty_like(content, device="cpu", pin_memory=True, requires_grad=False)
        return pinned.copy_(content.detach(), non_blocking=True)
    if isinstance(content, dict):
        return {name: _copy(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_copy(value) for value in content)
    return content
