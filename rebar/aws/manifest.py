"""The checksums of all files of a file system, in a file on it that ``sha256sum --check`` reads too.

What counting files proves: nothing. A snapshot of a mounted ext4 lists files whose contents it does not hold.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rebar.aws.client import AwsError
from rebar.aws.progress import Progress
from rebar.storage.atomic_write import atomic_write

NAME = "rebar.sha256"
IGNORED = {NAME, "lost+found"}  # in the root folder only
UNFINISHED = f".{NAME}.partial-"  # what a killed command left
CHUNK = 4 * 2**20
WORKERS = 16
"""Also a volume fresh from a snapshot is read by so many at once: each first read fetches its block from S3."""
Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Manifest:
    """Path below the root, with ``/``, to SHA-256 of the content (of a symbolic link: of its target)."""

    files: Mapping[str, str]
    links: Mapping[str, str]

    def to_text(self) -> str:
        """The lines of ``sha256sum``, sorted by path; links stand in comments."""
        lines = [f"# link {digest}  {path}\n" for path, digest in sorted(self.links.items())]
        lines += [f"{digest}  {path}\n" for path, digest in sorted(self.files.items())]
        return "".join(lines)

    def digest(self) -> str:
        """SHA-256 of the text: one number for all contents."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()

    def differences(self, other: "Manifest") -> list[str]:
        """What ``other`` has otherwise, one line each; empty where all is alike."""
        found = []
        for mine, theirs in ((self.files, other.files), (self.links, other.links)):
            found += [f"{path} is missing" for path in sorted(mine.keys() - theirs.keys())]
            found += [f"{path} was not there before" for path in sorted(theirs.keys() - mine.keys())]
            found += [
                f"{path} has other contents"
                for path in sorted(mine.keys() & theirs.keys())
                if mine[path] != theirs[path]
            ]
        return found


def stamps_of(root: Path) -> dict[str, Stamp]:
    """Of every file and link below a folder: inode, size, and times of change, to see whether it was touched.

    Raises AwsError for what is neither file, folder nor link, and for names with a line break.
    """
    found: dict[str, Stamp] = {}
    for entry in _walk(root):
        path, status = os.path.relpath(entry.path, root), entry.stat(follow_symlinks=False)
        if "\n" in path or "\\" in path:
            raise AwsError(
                f"{entry.path!r}: a name with a line break or backslash cannot stand in a manifest; rename it"
            )
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            raise AwsError(f"{entry.path} is neither a file nor a folder nor a link: remove it")
        found[path] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


def manifest_of(root: Path) -> Manifest:
    """Read every file below a folder, several at once, with progress; raises AwsError where one cannot be read."""
    entries = list(_walk(root))
    links = {
        os.path.relpath(entry.path, root): hashlib.sha256(os.fsencode(os.readlink(entry.path))).hexdigest()
        for entry in entries
        if entry.is_symlink()
    }
    files = [entry for entry in entries if not entry.is_symlink()]
    progress = Progress("checksums", sum(entry.stat().st_size for entry in files))

    def digest(entry: "os.DirEntry[str]") -> str:
        content = hashlib.sha256()
        try:
            with open(entry.path, "rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    content.update(chunk)
                    progress.add(len(chunk))
        except OSError as error:
            raise AwsError(f"{entry.path}: cannot be read: {error.strerror or error}") from None
        return content.hexdigest()

    with ThreadPoolExecutor(WORKERS) as threads:
        digests = list(threads.map(digest, files))
    progress.end()
    paths = [os.path.relpath(entry.path, root) for entry in files]
    return Manifest(dict(zip(paths, digests, strict=True)), links)


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Put a manifest into the root of its file system, whole and on disk."""
    with atomic_write(root / NAME) as (file,):
        file.write(manifest.to_text().encode())


def read_manifest(root: Path) -> Manifest | None:
    """The manifest in the root of a file system; None where there is none. Raises AwsError where it is damaged."""
    path = root / NAME
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AwsError(f"{path}: cannot be read: {error.strerror or error}") from None
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        target = links if line.startswith("# link ") else files
        digest, separator, name = line.removeprefix("# link ").partition("  ")
        if not separator or len(digest) != 64 or not name:
            raise AwsError(f"{path}: line {number} is no checksum: the file is damaged")
        target[name] = digest
    return Manifest(files, links)


def _walk(root: Path) -> "Iterator[os.DirEntry[str]]":
    """All that is not a folder, without what lies in the root by our or the file system's doing."""

    def below(folder: str, ignored: set[str]) -> "Iterator[os.DirEntry[str]]":
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise AwsError(f"{folder}: cannot be read: {error.strerror or error}") from None
        for entry in listed:
            if entry.name in ignored or (ignored and entry.name.startswith(UNFINISHED)):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from below(entry.path, set())
            else:
                yield entry

    yield from below(str(root), IGNORED)
