"""Asynchronous checkpoints: copy to host memory in the training loop, write atomically on a background thread."""

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch

from rebar.cli import warn
from rebar.errors import RebarError
from rebar.storage.files import atomic_write, link_or_copy
from rebar.storage.run_store import PREVIOUS, Progress

FORMAT = "rebar-checkpoint"
VERSION = 3
_ZIP_START = b"PK\3\4"


class CheckpointError(RebarError):
    """A checkpoint that is missing, damaged, or of another model or dataset."""


# ------------------------------------------------------------------ writing


class HostMemory:
    """Reusable host memory for copies of a checkpoint's tensors. Allocation would take longer than the copy."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []

    def copy(self, content: Any) -> Any:
        """Copy nested dicts, lists and tuples of tensors to the CPU. The result is valid until the next call.

        Copies from a GPU go to pinned memory and run concurrently.
        """
        reusable, self._tensors = iter(self._tensors), []
        copy = self._copy(content, reusable)
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return copy

    def _copy(self, content: Any, reusable: Iterator[torch.Tensor]) -> Any:
        if isinstance(content, torch.Tensor):
            target = next(reusable, None)
            if target is None or not _same_layout(target, content):
                pinned = content.device.type == "cuda"
                target = torch.empty_like(content, device="cpu", pin_memory=pinned, requires_grad=False)
            self._tensors.append(target)
            return target.copy_(content.detach(), non_blocking=True)
        if isinstance(content, dict):
            return {name: self._copy(value, reusable) for name, value in content.items()}
        if isinstance(content, list | tuple):
            return type(content)(self._copy(value, reusable) for value in content)
        return content


def _same_layout(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


class CheckpointWriter:
    """Writes checkpoints on a background thread, one at a time. The next method call raises a failed write's error."""

    def __init__(self, last: Path, *, keep_best: bool = False, keep_every: int = 0) -> None:
        """Write to ``last``. See :func:`keep_copies` for ``keep_best`` and ``keep_every``."""
        self._last, self._keep_best, self._keep_every = last, keep_best, keep_every
        self._memory = HostMemory()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rebar-checkpoint")
        self._pending: Future[None] | None = None
        self.on_written: Callable[[Progress], None] | None = None
        """Called on the background thread after each write, for uploads."""

    def save(self, content: Mapping[str, Any], progress: Progress, *, ends_epoch: bool, is_best: bool) -> None:
        """Copy a checkpoint's content to host memory, and start writing it. Waits for the previous one.

        ``ends_epoch``: the epoch is complete. ``is_best``: the checkpoint has the best validation top-1 so far.
        """
        self.wait()
        snapshot = self._memory.copy(dict(content))
        self._pending = self._thread.submit(self._write, snapshot, progress, ends_epoch, is_best)

    def _write(self, snapshot: Mapping[str, Any], progress: Progress, ends_epoch: bool, is_best: bool) -> None:
        save_checkpoint(self._last, snapshot)
        if ends_epoch:
            is_kept_as_best = self._keep_best and is_best
            keep_copies(self._last, epoch=progress.epoch, is_best=is_kept_as_best, keep_every=self._keep_every)
        if self.on_written is not None:
            self.on_written(progress)

    def raise_failure(self) -> None:
        """Raise the error of the last write, if it has failed. Does not block."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Block until the last write is complete. Raises its error if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values atomically; the replaced file is kept as ``previous.pt``.

    Raises CheckpointError (``disk-full``, ``checkpoint-not-writable``) if it cannot be written; the existing file is
    then unchanged.
    """
    previous = path.with_name(PREVIOUS)
    try:
        try:
            _write(path, content)
        except RebarError as error:
            if error.code != "disk-full" or not (path.is_file() and previous.is_file()):
                raise
            previous.unlink()  # make room on a full disk
            _write(path, content)
    except (RebarError, RuntimeError) as error:
        is_full = isinstance(error, RebarError) and error.code == "disk-full"
        message = f"{error} The previous checkpoint, if any, is intact. Run the same command again to resume from it."
        raise CheckpointError(message, code="disk-full" if is_full else "checkpoint-not-writable") from None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as (file,):
        torch_save({"format": FORMAT, "version": VERSION, **content}, file)
        file.flush()
        if path.exists():
            link_or_copy(path, path.with_name(PREVIOUS))


class _RecordingFile:
    """A file for ``torch.save`` that records the first error of a write."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def torch_save(content: object, file: IO[bytes]) -> None:
    """Call ``torch.save``. Raises the OSError of a failed write, which torch replaces with an assertion of its own."""
    recording = _RecordingFile(file)
    try:
        torch.save(content, recording)  # type: ignore[arg-type]
    except RuntimeError:
        if recording.error is None:
            raise
        raise recording.error from None


def keep_copies(last: Path, *, epoch: int, is_best: bool, keep_every: int) -> None:
    """Link the checkpoint of a complete epoch (counted from 1) to ``best.pt`` and ``epoch_N.pt``, where due.

    Raises CheckpointError if that fails.
    """
    is_due = keep_every > 0 and epoch % keep_every == 0
    names = [name for name, is_kept in (("best.pt", is_best), (f"epoch_{epoch:03d}.pt", is_due)) if is_kept]
    try:
        for name in names:
            link_or_copy(last, last.with_name(name))
    except OSError as error:
        raise CheckpointError(
            f"{last.with_name(names[-1])} cannot be written: {error.strerror}. Free some space and run the same "
            "command again.",
            code="checkpoint-not-writable",
        ) from None


# ------------------------------------------------------------------ reading


def plain_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state_dict without the key prefixes of DDP and torch.compile."""
    plain = {}
    for name, value in weights.items():
        parts = name.split(".")
        plain[".".join(part for part in parts if part not in ("module", "_orig_mod"))] = value
    return plain


_USE_ANOTHER = " Pass another checkpoint of the run as --resume FILE."


def read_newest(path: Path) -> tuple[dict[str, Any], Path]:
    """Read a checkpoint, or ``previous.pt`` with a warning if it is damaged. Return the content and the path read.

    Raises CheckpointError if neither can be read.
    """
    try:
        return read_checkpoint(path), path
    except CheckpointError as error:
        previous = path.with_name(PREVIOUS)
        if not (path.is_file() and previous.is_file()):
            raise
        content = read_checkpoint(previous)
        warn(f"{str(error).removesuffix(_USE_ANOTHER)} Using {previous}, the checkpoint before it.")
        return content, previous


def keep_damaged_checkpoint(last: Path) -> None:
    """Rename a damaged ``last.pt`` to ``last.pt.damaged``, and make ``previous.pt`` the last checkpoint.

    The next save would otherwise keep the damaged file as ``previous.pt``, in place of the only readable checkpoint.
    """
    link_or_copy(last, last.with_name(f"{last.name}.damaged"))
    link_or_copy(last.with_name(PREVIOUS), last)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, without executing pickled code.

    Raises CheckpointError if the file is missing, damaged, or not a checkpoint of this version.
    """
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder. Pass a checkpoint file, such as {path / 'checkpoints/last.pt'}.",
            code="checkpoint-not-found",
        )
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist. Check the path.", code="checkpoint-not-found")
    _check_start(path)
    content = None
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not verify the checksums
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # intact, but with objects that Rebar does not save
        raise _not_a_checkpoint(path) from None
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _damaged(path, f"it cannot be read: {reason}") from None
    if damaged:
        raise _damaged(path, f"the checksum of its record {damaged} is wrong")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _not_a_checkpoint(path)
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format version {content.get('version')}, this Rebar reads {VERSION}. Use the "
            "Rebar version that wrote it.",
            code="checkpoint-version",
        )
    return content


def _check_start(path: Path) -> None:
    """Raise CheckpointError if the file never was a checkpoint: it starts neither like one nor with zeros."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from None
    if start.strip(b"\0") and not _ZIP_START.startswith(start):  # a power failure may leave zeros
        raise _not_a_checkpoint(path)


def _not_a_checkpoint(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a Rebar checkpoint. Pass a file that train_imagenet.py wrote; evaluate.py --weights reads "
        "weights of other programs.",
        code="checkpoint-invalid",
    )


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {path} is damaged: {reason}.{_USE_ANOTHER}", code="checkpoint-damaged")
