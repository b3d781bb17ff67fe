"""``data send|stage`` and ``run upload|fetch``: verified transfers of files and run folders to and from S3."""

import socket
from argparse import Namespace
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rebar.aws.commands import Aws, argument, command, positive
from rebar.cli import warn
from rebar.storage.aws import AwsError, S3NotFoundError
from rebar.storage.files import sha256_of
from rebar.storage.run_store import (
    LAST,
    ORIGIN,
    PREVIOUS,
    RECORDS,
    Progress,
    RunManifest,
    RunStore,
    read_origin,
    read_status,
)
from rebar.storage.s3 import DOWNLOAD_PART_BYTES, DOWNLOAD_THREADS, MIB, S3Prefix, download, upload


@command(
    "data send",
    "/nvme/train.beton /nvme/train.beton.json s3://my-bucket/betons",
    argument("files", type=Path, nargs="+", help="the files"),
    argument("folder", help="s3://BUCKET/PREFIX"),
    changes=False,
)
def _send(aws: Aws, options: Namespace) -> None:
    """Upload files to S3, in parallel, with the checksums that 'data stage' verifies."""
    prefix, client = S3Prefix.parse(options.folder, "FOLDER"), aws("s3")
    for path in options.files:
        if not path.is_file():
            raise AwsError(f"{path}: no such file.", code="file-not-found")
    for path in options.files:
        with path.open("rb") as file:
            sha256 = sha256_of(file)
            file.seek(0)
            upload(client, file, prefix.bucket, prefix.key(path.name), sha256=sha256)
        print(f"{prefix}/{path.name}: {path.stat().st_size / MIB:.1f} MiB", flush=True)


@command(
    "data stage",
    "s3://my-bucket/betons/train.beton /nvme/train.beton",
    argument("source", help="s3://BUCKET/KEY; the sidecar of a .beton is downloaded too, if it exists"),
    argument("target", type=Path, help="the local file"),
    argument("--sha256", help="expected SHA-256 (default: the checksum that S3 has)"),
    argument("--unverified", action="store_true", help="accept an object without a checksum in S3"),
    argument("--overwrite", action="store_true", help="replace an existing file with other content"),
    argument("--workers", type=positive, default=DOWNLOAD_THREADS, help="parallel requests (default: %(default)s)"),
    argument(
        "--part-mib", type=positive, default=DOWNLOAD_PART_BYTES // MIB, help="MiB per request (default: %(default)s)"
    ),
    changes=False,
)
def _stage(aws: Aws, options: Namespace) -> None:
    """Download an S3 object to a local file, in parallel. Verifies its checksum, and resumes if interrupted."""
    source, client = S3Prefix.parse(options.source, "SOURCE"), aws("s3")
    if not source.prefix:
        raise AwsError(f"{source}: not an object. Use s3://BUCKET/KEY.", code="s3-invalid-url")
    how = {"threads": options.workers, "part_bytes": options.part_mib * MIB}
    how |= {"unverified": options.unverified, "overwrite": options.overwrite}
    is_new = download(client, source.bucket, source.prefix, options.target, sha256=options.sha256, **how)
    print(f"{options.target}: {'downloaded from' if is_new else 'unchanged, identical to'} {source}")
    if source.prefix.endswith(".beton"):
        sidecar = options.target.with_name(options.target.name + ".json")
        try:
            download(client, source.bucket, source.prefix + ".json", sidecar, **how)
            print(f"{sidecar}: downloaded")
        except S3NotFoundError:
            pass


# ------------------------------------------------------------------------------------------ runs

TRIES = 5
URL = "s3://BUCKET/PREFIX/RUN_ID"
FOLDER = argument("folder", type=Path, help="the run's folder (--logging.folder)")


@dataclass(frozen=True)
class UploadResult:
    """Step of the uploaded run, and number and size of the checkpoints that were uploaded."""

    step: int
    checkpoints: int
    bytes: int


@command(
    "run upload", "runs/g5-16 s3://my-bucket/runs/g5-16", FOLDER, argument("url", metavar="to", help=URL), changes=False
)
def _upload(aws: Aws, options: Namespace) -> None:
    """Upload a run's checkpoints and records. If interrupted, the previous upload stays valid."""
    prefix = S3Prefix.parse(options.url, "to")
    done = upload_run(aws("s3"), options.folder, prefix)
    print(f"{prefix}: step {done.step}, {done.checkpoints} new checkpoints, {done.bytes / MIB:.1f} MiB")


def upload_run(client: Any, folder: Path, prefix: S3Prefix) -> UploadResult:
    """Upload a run's checkpoints and records, then the manifest.

    Checkpoints that are in S3 are not uploaded again. Objects of the last and the best checkpoint that were replaced
    are deleted; other checkpoints stay in S3, even if the folder does not have them. The manifest is replaced only if
    it has not changed meanwhile, so concurrent uploads lose nothing. Raises AwsError ``run-without-checkpoint`` and, if
    S3 has more progress, ``run-continued-elsewhere``.
    """
    store = RunStore(client, prefix)
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        for path in sorted((folder / "checkpoints").glob("[!.]*.pt")):
            if path.name != PREVIOUS:
                with suppress(FileNotFoundError):  # deleted by training, which also replaces files while they are open
                    files[path.name] = stack.enter_context(path.open("rb"))
        if LAST not in files:
            raise AwsError(f"{folder}: checkpoints/{LAST} does not exist. Train first.", code="run-without-checkpoint")
        for _ in range(TRIES):
            if (done := _try_to_upload(store, folder, files)) is not None:
                return done
    raise AwsError(f"{prefix}: another process keeps uploading to it. Use another prefix.", code="run-upload-conflict")


def _try_to_upload(store: RunStore, folder: Path, files: dict[str, IO[bytes]]) -> UploadResult | None:
    """Upload open checkpoints and the records; return None if another process has replaced the manifest meanwhile."""
    before, version = store.read_version()
    known = dict(before.checkpoints) if before else {}
    present = {stored.object for stored in known.values()}
    progress = _progress(folder)
    if before and before.progress.step > progress.step:
        if known[LAST].sha256 != _sha256(files[LAST]):
            raise AwsError(
                f"{folder} is at step {progress.step}, but {store.url} is at step {before.progress.step}, "
                f"uploaded by {before.host or 'another machine'}. Use another prefix to keep both.",
                code="run-continued-elsewhere",
            )
        progress = before.progress
    checkpoints = known | {name: store.store_checkpoint(file, present) for name, file in files.items()}
    if LAST in known and known[LAST] != checkpoints[LAST]:
        checkpoints[PREVIOUS] = known[LAST]
    for path in [path for pattern in RECORDS for path in folder.glob(pattern)]:
        store.store_record(path)
    manifest = RunManifest(progress, checkpoints, socket.gethostname(), read_origin(folder / ORIGIN))
    if not store.write_manifest(manifest, if_version=version):
        return None
    try:
        store.delete(present - {stored.object for stored in checkpoints.values()})
    except AwsError as error:  # without permission
        warn(f"{error} Earlier checkpoints are kept in S3.")
    new = {stored for stored in checkpoints.values() if stored.object not in present}
    return UploadResult(progress.step, len(new), sum(stored.bytes for stored in new))


def _progress(folder: Path) -> Progress:
    """Return the progress in ``status.json``. While training runs, this is the progress at its start."""
    status = read_status(folder / "status.json")
    if status is None:
        return Progress(0, 0, 0.0)
    return Progress(status.epoch, status.step, float(status.epoch) if status.position is None else status.position)


def _sha256(file: IO[bytes]) -> str:
    file.seek(0)
    return sha256_of(file)


@command(
    "run fetch",
    "s3://my-bucket/runs/g5-16 runs/g5-16",
    argument("url", metavar="from", help=URL),
    FOLDER,
    argument("--replace", action="store_true", help="replace the files of another run in the folder"),
    changes=False,
)
def _fetch(aws: Aws, options: Namespace) -> None:
    """Download a run to resume it, and verify its checksums. Does nothing if the run is not uploaded yet."""
    prefix, folder = S3Prefix.parse(options.url, "from"), options.folder
    store, last = RunStore(aws("s3"), prefix), folder / "checkpoints" / LAST
    manifest = store.read_manifest()
    is_complete = False  # last.pt is downloaded after everything else
    if manifest and not options.replace and last.is_file():
        with last.open("rb") as file:
            is_complete = sha256_of(file) == manifest.last.sha256
        if not is_complete:
            raise AwsError(
                f"{last} is not the checkpoint of {prefix} (step {manifest.progress.step}). Upload it, or replace it "
                "with --replace.",
                code="run-exists",
            )
    if not is_complete:  # otherwise the folder's log may have later lines
        manifest = store.fetch(folder, overwrite=options.replace)
    if manifest is None:
        print(f"{prefix}: no uploaded run")
    else:
        print(f"{folder}: the run at step {manifest.progress.step}, uploaded by {manifest.host}")
