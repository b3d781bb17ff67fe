"""A checkpoint is taken in the loop and written beside it.

Taking it copies what training goes on to change to host memory, which is quick. Writing it and making it durable takes
as long as the disk does, on a thread of its own.

Checkpoints: written aside, made durable, then renamed, so that the last good one always survives.
"""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import torch

from rebar.cli import warn
from rebar.config import option
from rebar.errors import RebarError
from rebar.storage.atomic_write import atomic_write
from rebar.storage.run_manifest import PREVIOUS


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


FORMAT = "rebar-checkpoint"
VERSION = 2


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints and resuming."""

    resume: str = option("auto", help="auto: go on from the run folder's checkpoint; none: start afresh; or a file")
    overwrite: bool = option(
        False, help="with --resume none: delete an earlier run in the folder; with a file: begin from it again"
    )
    every_steps: int = option(0, help="also save within an epoch, every so many steps; 0: not by steps", minimum=0)
    every_minutes: float = option(
        10.0, help="also save within an epoch, when the last is so many minutes old; 0: not by time", minimum=0
    )
    keep_best: bool = option(True, help="keep best.pt, of the highest validation top-1")
    keep_every: int = option(0, help="keep the checkpoint of every so many epochs; 0: of none", minimum=0)
    export: Literal["none", "safetensors", "torchvision", "both", "onnx", "all"] = option(
        "none",
        help="at the end also write weights.safetensors, weights.pth (both), weights.onnx; of what was evaluated",
    )
    reset_schedule: bool = option(
        False, help="going on with other --epochs: a schedule of its own for what is left, without a jump"
    )
    freeze_lr: float | None = option(
        None, help="hold the learning rate at this value; without a value, at the last one", minimum=0, bare="0"
    )
    spot_notice: Literal["auto", "on", "off"] = option(
        "auto", help="look for EC2's spot interruption notice; auto: on EC2's machines"
    )
    spot_poll_seconds: float = option(5.0, help="how often to look for it", minimum=0.1)


class CheckpointError(RebarError):
    """A checkpoint that is missing, damaged, or of something else."""


def plain_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state_dict under the bare model's names, whichever wrapper (DDP, torch.compile) it was taken from."""
    plain = {}
    for name, value in weights.items():
        parts = name.split(".")
        plain[".".join(part for part in parts if part not in ("module", "_orig_mod"))] = value
    return plain


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` (tensors and plain values) so that ``path`` holds either the old or the new whole.

    Raises CheckpointError where it cannot be written; the earlier file is then untouched.
    """
    previous = path.with_name(PREVIOUS)
    try:
        try:
            _write(path, content)
        except (RebarError, RuntimeError):
            if not (path.is_file() and previous.is_file()):
                raise
            previous.unlink()  # its place may be what is missing
            _write(path, content)
    except (RebarError, RuntimeError) as error:  # torch reports some failed writes as a RuntimeError
        raise CheckpointError(
            f"checkpoint {path} cannot be written ({error}). The one before it, if any, is intact; "
            "free some space and run the same command again"
        ) from None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as (file,):
        torch.save({"format": FORMAT, "version": VERSION, **content}, file)
        file.flush()
        if path.exists():
            link(path, path.with_name(PREVIOUS))


def link(source: Path, target: Path) -> None:
    """Give a file a second name, replacing what had it; a copy where the file system has no links."""
    temporary = target.with_name(f".{target.name}.partial-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def sha256_of(file: IO[bytes]) -> str:
    """The checksum of what is left of an open file, in hexadecimal digits."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def keep_copies(last: Path, *, epoch: int, is_best: bool, keep_every: int) -> None:
    """Keep the checkpoint of a complete epoch (counted from 1) as ``best.pt`` and ``epoch_N.pt``, as asked.

    They share the file's blocks until ``last`` is replaced. Raises CheckpointError where that fails.
    """
    names = [
        name
        for name, wanted in (("best.pt", is_best), (f"epoch_{epoch:03d}.pt", _falls_on(epoch, keep_every)))
        if wanted
    ]
    try:
        for name in names:
            link(last, last.with_name(name))
    except OSError as error:
        raise CheckpointError(f"{last.with_name(names[-1])} cannot be written: {error.strerror}") from None


def _falls_on(epoch: int, every: int) -> bool:
    return every > 0 and epoch % every == 0


def read_newest(path: Path) -> tuple[dict[str, Any], Path]:
    """A checkpoint and its path; where it is damaged, the one saved before it, with a warning.

    Raises CheckpointError where neither can be read.
    """
    try:
        return read_checkpoint(path), path
    except CheckpointError as error:
        previous = path.with_name(PREVIOUS)
        if not (path.is_file() and previous.is_file()):
            raise
        content = read_checkpoint(previous)
        warn(f"{error}; going on from {previous}, which was saved before it")
        return content, previous


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only tensors and plain values, never code.

    Raises CheckpointError naming the file and what is wrong with it.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the checkpoint itself, such as {path / 'checkpoints/last.pt'}")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not compare the checksums
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {path} is damaged or no checkpoint: {reason}") from None
    if damaged:
        raise CheckpointError(f"checkpoint {path} is damaged: the checksum of its part {damaged} is wrong")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a Rebar checkpoint")
    if content.get("version") != VERSION:
        raise CheckpointError(f"checkpoint {path} has version {content.get('version')}; this Rebar reads {VERSION}")
    return content
