"""What a run's folder tells of it, read without training's own packages.

Reading and replacing a run's ``run.json`` in S3, so that of two who upload at a time none is lost.

A run's folder to S3 and back: every object is there before the pointer names it, and is compared when it is read.
"""

import contextlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rebar.aws.client import AwsError, Clients, code_of, translate_aws_error
from rebar.aws.s3_transfer import Folder, send_file, sha256_of
from rebar.aws.staging import stage
from rebar.storage.atomic_write import atomic_write
from rebar.storage.run_manifest import (
    LAST,
    MANIFEST,
    ORIGIN,
    PREVIOUS,
    RECORDS,
    RECORDS_TO_GO_ON_WITH,
    Progress,
    RunManifest,
    Stored,
    read_origin,
)


@dataclass(frozen=True)
class Status:
    """``status.json``; ``time`` in seconds since 1970, ``state`` empty where there is no such file."""

    state: str = ""
    reason: str = ""
    epoch: int = 0
    step: int = 0
    time: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether training says that it has left, with everything saved that it will save."""
        return self.state in ("finished", "interrupted", "failed")


def status_of(folder: Path) -> Status:
    """How the run stands; what cannot be read says nothing."""
    try:
        record = json.loads((folder / "status.json").read_text())
        return Status(**{name: record[name] for name in Status.__annotations__})
    except (OSError, ValueError, KeyError, TypeError):
        return Status()


def progress_of(folder: Path) -> Progress:
    """How far the run is: as its status says, which while it trains is where it began."""
    status = status_of(folder)
    steps_per_epoch = _steps_per_epoch(folder)
    position = status.step / steps_per_epoch if steps_per_epoch else float(status.epoch)
    return Progress(status.epoch, status.step, position)


def _steps_per_epoch(folder: Path) -> float:
    """From a step's record, which has its number and the epoch by its share; 0 where there is none."""
    with suppress(OSError), (folder / "log.jsonl").open() as log:
        for line in log:
            with suppress(ValueError, KeyError, TypeError, ZeroDivisionError):
                record = json.loads(line)
                if record["event"] == "step" and record["step"]:
                    return float(record["step"] / record["epoch"])
    return 0.0


def read_pointer(clients: Clients, place: Folder) -> tuple[RunManifest | None, str]:
    """What a run's place holds, and the version of the file; (None, "") for nothing. Raises AwsError."""
    from botocore.exceptions import ClientError

    with translate_aws_error(f"reading {place}/{MANIFEST}"):
        try:
            answer = clients("s3").get_object(Bucket=place.bucket, Key=place.key(MANIFEST))
        except ClientError as error:
            if code_of(error) in ("NoSuchKey", "404"):
                return None, ""
            raise
        text = answer["Body"].read()
    try:
        return RunManifest.from_json(text), str(answer["ETag"])
    except ValueError:
        raise AwsError(f"{place}/{MANIFEST} is damaged, or of another version of Rebar: take another run id") from None


def write_pointer(clients: Clients, place: Folder, pointer: RunManifest, *, replaces: str) -> bool:
    """Replace the file of a version ("": there was none); False where it is another meanwhile."""
    from botocore.exceptions import ClientError

    condition = {"IfMatch": replaces} if replaces else {"IfNoneMatch": "*"}
    where = {"Bucket": place.bucket, "Key": place.key(MANIFEST)}
    with translate_aws_error(f"writing {place}/{MANIFEST}"):
        try:
            clients("s3").put_object(**where, Body=pointer.to_json(), ChecksumAlgorithm="SHA256", **condition)
        except ClientError as error:
            if code_of(error) in ("PreconditionFailed", "ConditionalRequestConflict"):
                return False
            raise
    return True


FILES_AT_ONCE = 8
TRIES = 5
FORGOTTEN_SECONDS = 3600


@dataclass(frozen=True)
class Sent:
    """What an upload did: the run's step, and the checkpoints that were not in S3 before."""

    step: int
    checkpoints: int
    bytes: int


def upload_run(clients: Clients, folder: Path, place: Folder) -> Sent:
    """Upload a run's newest checkpoint, the best, and its records; the pointer last.

    A checkpoint that S3 holds is not sent again, one that is replaced is deleted. Raises AwsError where the folder
    has no checkpoint, and where S3 holds a later state of the run.
    """
    if not (folder / "checkpoints" / LAST).is_file():
        raise AwsError(f"{folder} has no checkpoint (checkpoints/{LAST}): nothing to upload")
    with _held(folder) as (checkpoints, records):
        stored = {name: _stored(path) for name, path in checkpoints.items()}
        progress = progress_of(folder)
        for _ in range(TRIES):
            before, version = read_pointer(clients, place)
            known = dict(before.checkpoints) if before else {}
            if before and before.progress.step > progress.step:
                if known[LAST] != stored[LAST]:
                    raise AwsError(
                        f"{place} is at step {before.progress.step} (from {before.host or 'another machine'}), "
                        f"{folder} at step {progress.step}: it is left as it is; take another run id to keep both"
                    )
                progress = before.progress
            new = {stored[name]: path for name, path in checkpoints.items() if stored[name] not in known.values()}
            _send_all(clients, place, new, records)
            named = {**stored}
            if LAST in known and known[LAST] != stored[LAST]:
                named[PREVIOUS] = known[LAST]
            elif PREVIOUS in known:
                named[PREVIOUS] = known[PREVIOUS]
            manifest = RunManifest(progress, named, socket.gethostname(), read_origin(folder / ORIGIN))
            if write_pointer(clients, place, manifest, replaces=version):
                _delete(clients, place, {each.object for each in known.values()} - {s.object for s in named.values()})
                return Sent(progress.step, len(new), sum(each.bytes for each in new))
    raise AwsError(f"{place}: something else uploads to this run all the time: give each run an id of its own")


def fetch_run(clients: Clients, place: Folder, folder: Path, *, replace: bool = False) -> RunManifest | None:
    """Bring a run from S3 into a folder, for training to go on there; None where S3 has none.

    The last checkpoint comes last: its being there says that all is. Raises AwsError, also where the folder has
    another checkpoint that is not to be replaced.
    """
    pointer, version = read_pointer(clients, place)
    last = folder / "checkpoints" / LAST
    if pointer and not replace and last.is_file() and sha256_of(last) != pointer.checkpoints[LAST].sha256:
        raise AwsError(
            f"{last} is another checkpoint than that of {place} (step {pointer.progress.step}): upload it, or take the "
            "other in its place with --replace"
        )
    while pointer is not None:
        try:
            _fetch(clients, place, pointer, folder)
            return pointer
        except AwsError:
            newer, its_version = read_pointer(clients, place)
            if its_version == version:
                raise
            pointer, version = newer, its_version  # what was replaced meanwhile is gone
    return None


def _fetch(clients: Clients, place: Folder, pointer: RunManifest, folder: Path) -> None:
    for record in (*RECORDS_TO_GO_ON_WITH, ORIGIN):
        _fetch_record(clients, place, record, folder)
    for name in ("best.pt", LAST):
        if name in pointer.checkpoints:
            stored = pointer.checkpoints[name]
            target = folder / "checkpoints" / name
            stage(clients, place.bucket, place.key(stored.object), target, sha256=stored.sha256)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[tuple[dict[str, Path], dict[str, Path]]]:
    """Checkpoints and records as they are now: the first, replaced as a whole, by hard link; the others copied."""
    for left in folder.glob(".upload-*"):  # by a command that was killed
        if time.time() - left.stat().st_mtime > FORGOTTEN_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".upload-", dir=folder) as made:
        copies = Path(made)
        checkpoints = {path.name: path for path in sorted((folder / "checkpoints").glob("[!.]*.pt"))}
        checkpoints.pop(PREVIOUS, None)
        records = {path.name: path for pattern in RECORDS for path in sorted(folder.glob(pattern))}
        held: dict[str, Path] = {}
        for path in (*checkpoints.values(), *records.values()):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                if path.suffix == ".pt":
                    os.link(path, copies / path.name)
                else:
                    (copies / path.name).write_bytes(path.read_bytes())
                held[path.name] = copies / path.name
        yield (
            {name: held[name] for name in checkpoints if name in held},
            {name: held[name] for name in records if name in held},
        )


def _stored(path: Path) -> Stored:
    sha256 = sha256_of(path)
    return Stored(f"checkpoints/{sha256[:16]}.pt", sha256, path.stat().st_size)


def _send_all(clients: Clients, place: Folder, new: Mapping[Stored, Path], records: Mapping[str, Path]) -> None:
    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        pending = [
            threads.submit(send_file, clients, path, place.bucket, place.key(stored.object), sha256=stored.sha256)
            for stored, path in new.items()
        ]
        pending += [
            threads.submit(send_file, clients, path, place.bucket, place.key(name)) for name, path in records.items()
        ]
        try:
            for each in pending:
                each.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _delete(clients: Clients, place: Folder, objects: set[str]) -> None:
    """Delete what only the replaced pointer named; not being allowed to costs storage, not the run."""
    from botocore.exceptions import ClientError

    for name in sorted(objects):
        with translate_aws_error(f"deleting {place}/{name}"):
            try:
                clients("s3").delete_object(Bucket=place.bucket, Key=place.key(name))
            except ClientError as error:
                if code_of(error) not in ("AccessDenied", "403"):
                    raise
                print(f"{place}: earlier checkpoints stay there: s3:DeleteObject is not allowed")
                return


def _fetch_record(clients: Clients, place: Folder, name: str, folder: Path) -> None:
    from botocore.exceptions import ClientError

    with translate_aws_error(f"reading {place}/{name}"):
        try:
            content = clients("s3").get_object(Bucket=place.bucket, Key=place.key(name))["Body"].read()
        except ClientError as error:
            if code_of(error) in ("NoSuchKey", "404"):
                return
            raise
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / name) as (file,):
        file.write(content)
