"""A checkpoint is taken in the loop and written beside it.

Taking it copies what training goes on to change to host memory, which is quick. Writing it and making it durable takes
as long as the disk does, on a thread of its own.
"""

from collections.abc import Callable, Iterator
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


class HostMemory:
    """Room on the CPU for one copy of what a checkpoint holds, used again: new memory takes longer than the copy."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []

    def copy(self, content: Any) -> Any:
        """``content`` with tensors of this memory, in its own dicts, lists and tuples; good until the next copy.

        From a GPU they are copied to pinned memory, all of them at once.
        """
        earlier, self._tensors = iter(self._tensors), []
        copy = self._copy(content, earlier)
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return copy

    def _copy(self, content: Any, earlier: Iterator[torch.Tensor]) -> Any:
        if isinstance(content, torch.Tensor):
            room = next(earlier, None)
            if room is None or not _fits(room, content):
                pinned = content.device.type == "cuda"
                room = torch.empty_like(content, device="cpu", pin_memory=pinned, requires_grad=False)
            self._tensors.append(room)
            return room.copy_(content.detach(), non_blocking=True)
        if isinstance(content, dict):
            return {name: self._copy(value, earlier) for name, value in content.items()}
        if isinstance(content, list | tuple):
            return type(content)(self._copy(value, earlier) for value in content)
        return content


def _fits(room: torch.Tensor, content: torch.Tensor) -> bool:
    return (room.shape, room.dtype, room.stride()) == (content.shape, content.dtype, content.stride())
