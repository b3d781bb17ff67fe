"""SHA-256 of every file of a file system, stored on it in the format of ``sha256sum``.

Comparing names and sizes is not enough: a snapshot of a mounted ext4 can list files without their contents.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rebar.cli import progress_bar
from rebar.storage.aws import AwsError
from rebar.storage.files import atomic_write, hash_of

NAME = "rebar.sha256"
IGNORED = {NAME, "lost+found"}  # in the root folder only
PARTIAL = f".{NAME}.partial-"  # left by a killed command
WORKERS = 16
"""Parallel reads. On a volume restored from a snapshot, the first read of every block fetches it from S3."""
Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Manifest:
    """SHA-256 of the contents of files and of the targets of symbolic links, by path relative to the root."""

    files: Mapping[str, str]
    links: Mapping[str, str]

    def to_text(self) -> str:
        """Return the lines of ``sha256sum``, sorted by path, with links in comments."""
        lines = [f"# link {digest}  {path}\n" for path, digest in sorted(self.links.items())]
        lines += [f"{digest}  {path}\n" for path, digest in sorted(self.files.items())]
        return "".join(lines)

    def digest(self) -> str:
        """Return the SHA-256 of :meth:`to_text`, which identifies all contents."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()

    def differences(self, other: "Manifest") -> list[str]:
        """Return one line per difference between this manifest and a later one."""
        found = []
        for before, after in ((self.files, other.files), (self.links, other.links)):
            for path in sorted(before.keys() | after.keys()):
                if before.get(path) != after.get(path):
                    what = "is missing" if path not in after else "is new" if path not in before else None
                    found.append(f"{path} {what or 'has different contents'}")
        return found


def stamps_of(root: Path) -> dict[str, Stamp]:
    """Return inode, size, mtime and ctime of every file and link below a folder, to detect changes.

    Raises AwsError ``manifest-unsupported-file`` for other kinds of files, and names with a line break or backslash.
    """
    found: dict[str, Stamp] = {}
    for entry in _walk(root):
        path, status = os.path.relpath(entry.path, root), entry.stat(follow_symlinks=False)
        if "\n" in path or "\\" in path:
            raise AwsError(
                f"{entry.path!r}: names with a line break or backslash are not supported. Rename the file.",
                code="manifest-unsupported-file",
            )
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            raise AwsError(
                f"{entry.path} is not a file, folder or symbolic link. Remove it.", code="manifest-unsupported-file"
            )
        found[path] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


def manifest_of(root: Path) -> Manifest:
    """Read every file below a folder in parallel. Raises AwsError ``file-not-readable``."""
    entries = {os.path.relpath(entry.path, root): entry for entry in _walk(root)}
    links = {
        path: hashlib.sha256(os.fsencode(os.readlink(entry.path))).hexdigest()
        for path, entry in entries.items()
        if entry.is_symlink()
    }
    files = {path: entry for path, entry in entries.items() if path not in links}
    size = sum(entry.stat().st_size for entry in files.values())

    def digest(entry: "os.DirEntry[str]") -> str:
        try:
            with open(entry.path, "rb", buffering=0) as file:
                return str(hash_of(file, on_read=bar.update).hexdigest())
        except OSError as error:
            reason = error.strerror or error
            raise AwsError(f"{entry.path} cannot be read: {reason}.", code="file-not-readable") from None

    with (
        progress_bar("checksums", size, "B") as bar,
        ThreadPoolExecutor(WORKERS) as threads,
    ):
        return Manifest(dict(zip(files, threads.map(digest, files.values()), strict=True)), links)


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write a manifest into the root of its file system, atomically and durably."""
    with atomic_write(root / NAME) as (file,):
        file.write(manifest.to_text().encode())


def read_manifest(root: Path) -> Manifest | None:
    """Return the manifest of a file system, or None. Raises AwsError ``manifest-damaged``."""
    path = root / NAME
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AwsError(f"{path} cannot be read: {error.strerror or error}.", code="file-not-readable") from None
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        target = links if line.startswith("# link ") else files
        digest, separator, name = line.removeprefix("# link ").partition("  ")
        if not separator or len(digest) != 64 or not name:
            raise AwsError(f"{path} is damaged: line {number} is not a checksum.", code="manifest-damaged")
        target[name] = digest
    return Manifest(files, links)


def _walk(root: Path) -> "Iterator[os.DirEntry[str]]":
    """Yield all files and links, except the manifest and lost+found in the root."""

    def below(folder: str, ignored: set[str]) -> "Iterator[os.DirEntry[str]]":
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise AwsError(f"{folder} cannot be read: {error.strerror or error}.", code="file-not-readable") from None
        for entry in listed:
            if entry.name in ignored or (ignored and entry.name.startswith(PARTIAL)):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from below(entry.path, set())
            else:
                yield entry

    yield from below(str(root), IGNORED)
