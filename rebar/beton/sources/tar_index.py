"""Where the members of a tar lie in it, so that they are read without unpacking."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rebar.errors import RebarError

BLOCK = 512
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


class Member(NamedTuple):
    """A regular file of a tar: ``size`` bytes from ``offset`` of the whole file on."""

    name: str
    offset: int
    size: int


class _Slice:
    """A part of a file, as the file object that ``tarfile`` wants. Threads may have one each."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self._descriptor, self._start, self._size = descriptor, start, size
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + position
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size < 0 else min(size, left)
        content = os.pread(self._descriptor, wanted, self._start + self._position)
        self._position += len(content)
        return content


def list_members(path: Path, within: Member | None = None) -> Iterator[Member]:
    """The regular files of a tar, in its order; ``within``: of a tar that is itself a member of it.

    Folders, links, and the files that macOS adds (``._name``) are left out. Raises RebarError for a file that
    cannot be read, is no tar, or is cut short.
    """
    name = f"{path}:{within.name}" if within else str(path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise RebarError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        start, size = (within.offset, within.size) if within else (0, os.fstat(descriptor).st_size)
        view = _Slice(descriptor, start, size)
        with tarfile.open(fileobj=view, mode="r:") as tar:  # type: ignore[call-overload]
            while (entry := tar.next()) is not None:
                if entry.isreg() and not os.path.basename(entry.name).startswith("._"):
                    yield Member(entry.name.removeprefix("./"), start + entry.offset_data, entry.size)
                tar.members.clear()  # else it keeps all of them
            view.seek(tar.offset)
            if view.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError("it has no end")
    except (tarfile.TarError, ValueError, OSError) as error:
        raise RebarError(f"{name}: is no tar, or is cut short ({error}); download or copy it again") from None
    finally:
        os.close(descriptor)


def refuse_compressed(path: Path) -> None:
    """Raises RebarError for a compressed tar, of which no part can be read without all before it."""
    if path.name.lower().endswith((*COMPRESSED, ".zip")):
        raise RebarError(
            f"{path}: is compressed, so that no picture can be read alone; unpack it and give the folder, or "
            "uncompress it to a .tar (gunzip, unxz, zstd -d)"
        )
