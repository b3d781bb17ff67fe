"""An object of S3 to a local disk, by many ranges at once; resumed after a kill, checked, renamed when it is whole."""

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rebar.aws.client import AwsError, Clients, code_of, translate_aws_error, without_secrets
from rebar.aws.file_lock import held
from rebar.aws.progress import Progress
from rebar.aws.s3_transfer import Expected, expected_checksum
from rebar.storage.atomic_write import sync_folder

MIB, GIB = 2**20, 2**30
PART_BYTES = 32 * MIB
WORKERS = 32
TRIES = 5
RETRY_SECONDS = 0.5


@dataclass(frozen=True)
class Source:
    """One version of an object."""

    bucket: str
    key: str
    etag: str
    size: int

    @property
    def url(self) -> str:
        """As people write it."""
        return f"s3://{self.bucket}/{self.key}"


@dataclass
class Journal:
    """Which parts of which version have arrived; lies beside the unfinished file."""

    path: Path
    source: Source
    part_bytes: int
    done: set[int] = field(default_factory=set)

    @property
    def parts(self) -> int:
        """How many there are."""
        return -(-self.source.size // self.part_bytes)

    def load(self) -> None:
        """Take over what an earlier call noted, if it was the same version."""
        try:
            content = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return
        if isinstance(content, dict) and content.get("version") == self._version():
            self.done = {index for index in content.get("done", ()) if index in range(self.parts)}

    def note(self, index: int) -> None:
        """One part more."""
        self.done.add(index)
        temporary = self.path.with_name(self.path.name + ".new")
        temporary.write_text(json.dumps({"version": self._version(), "done": sorted(self.done)}))
        os.replace(temporary, self.path)

    def range_of(self, index: int) -> tuple[int, int]:
        """First and one past the last byte of a part."""
        return index * self.part_bytes, min((index + 1) * self.part_bytes, self.source.size)

    def _version(self) -> list[Any]:
        return [self.source.etag, self.source.size, self.part_bytes]


def stage(
    clients: Clients,
    bucket: str,
    key: str,
    target: Path,
    *,
    sha256: str | None = None,
    unverified: bool = False,
    workers: int = WORKERS,
    part_bytes: int = PART_BYTES,
) -> bool:
    """Copy an object to a file; False where the file is there already with the same contents.

    The checksum is the one given, the object's ``sha256`` metadata, or its ETag where that is one of the contents;
    raises AwsError where there is none and not ``unverified``, where the contents differ, where the object
    changes meanwhile, where the disk is too small.
    """
    s3 = clients("s3")
    with translate_aws_error(f"looking at s3://{bucket}/{key}"):
        head = s3.head_object(Bucket=bucket, Key=key)
    source = Source(bucket, key, head["ETag"], head["ContentLength"])
    expected = expected_checksum(s3, bucket, key, head, sha256)
    if expected is None and not unverified:
        raise AwsError(
            f"{source.url} has no checksum that can be compared: give --sha256, upload it with --metadata sha256=…, "
            "or accept that with --unverified"
        )
    if expected is not None and target.is_file() and _is_same(target, source, expected):
        return False
    if target.is_dir():
        raise AwsError(f"{target} is a folder: give the file's name")
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.staging")
    with held(path, f"{path}: another process is fetching this file: wait for it") as handle:
        journal = Journal(path.with_name(path.name + ".json"), source, part_bytes)
        journal.load()
        _allocate(path, handle, journal)
        _fetch(s3, handle, journal, workers)
        if expected is not None and not expected.matches(path):
            path.unlink()
            journal.path.unlink(missing_ok=True)
            raise AwsError(f"{source.url}: what arrived does not have its {expected.kind}: fetched again next time")
        os.fsync(handle)
        os.replace(path, target)
        journal.path.unlink(missing_ok=True)
        sync_folder(target.parent)
    return True


def _is_same(target: Path, source: Source, expected: Expected) -> bool:
    return target.stat().st_size == source.size and expected.matches(target)


def _allocate(path: Path, handle: int, journal: Journal) -> None:
    """Reserve the disk space before anything is fetched."""
    size = journal.source.size
    present = os.fstat(handle).st_blocks * 512
    free = shutil.disk_usage(path.parent).free
    if size - present > free:
        raise AwsError(
            f"{path.parent} has {free / GIB:.1f} GiB free, {journal.source.url} needs {(size - present) / GIB:.1f} more"
        )
    if os.fstat(handle).st_size != size:
        os.ftruncate(handle, 0)
        journal.done.clear()
        try:
            if size:
                os.posix_fallocate(handle, 0, size)
        except OSError as error:
            os.ftruncate(handle, 0)
            raise AwsError(f"{path.parent}: {size / GIB:.1f} GiB cannot be reserved: {error.strerror}") from None


def _fetch(s3: Any, handle: int, journal: Journal, workers: int) -> None:
    """All parts that are still missing; the first error ends the others."""
    missing = [index for index in range(journal.parts) if index not in journal.done]
    ranges = [journal.range_of(index) for index in journal.done]
    progress = Progress(
        journal.source.key.rpartition("/")[2], journal.source.size, sum(end - start for start, end in ranges)
    )
    stop, lock = threading.Event(), threading.Lock()

    def fetch(index: int) -> None:
        if stop.is_set():
            return
        _fetch_part(s3, handle, journal, index, progress, stop)
        with lock:
            if not stop.is_set():
                journal.note(index)

    with ThreadPoolExecutor(workers) as threads:
        pending = [threads.submit(fetch, index) for index in missing]
        try:
            for each in pending:
                each.result()
        except BaseException:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    progress.end()


def _fetch_part(s3: Any, handle: int, journal: Journal, index: int, progress: Progress, stop: threading.Event) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    source, (start, end) = journal.source, journal.range_of(index)
    position = start
    for attempt in range(1, TRIES + 1):
        try:
            answer = s3.get_object(
                Bucket=source.bucket, Key=source.key, Range=f"bytes={position}-{end - 1}", IfMatch=source.etag
            )
            for chunk in answer["Body"].iter_chunks(MIB):
                os.pwrite(handle, chunk, position)
                position += len(chunk)
                progress.add(len(chunk))
                if stop.is_set():
                    return
            if position == end:
                return
            problem = f"{end - position} bytes are missing"
        except ClientError as error:
            code = code_of(error)
            if code in ("PreconditionFailed", "412"):
                raise AwsError(f"{source.url} was changed while it was being fetched: run the command again") from None
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500) < 500 and code != "SlowDown":
                raise AwsError(f"{source.url}: AWS answered {code}") from None
            problem = code
        except (BotoCoreError, OSError) as error:
            problem = without_secrets(str(error))
        if stop.wait(RETRY_SECONDS * 2**attempt if attempt < TRIES else 0):
            return
    raise AwsError(
        f"{source.url}: bytes {position} to {end - 1} could not be fetched ({problem}): run the command again"
    )
