"""The commands ``data send|stage|disks|obtain``."""

import argparse
from pathlib import Path
from typing import Any

from rebar.aws.commands.parsers import add_command, add_group, clients_of, positive
from rebar.aws.download_imagenet import DEVKIT_URL, SOURCES, download_imagenet, read_checksums
from rebar.aws.instance_store import prepare
from rebar.aws.plan import mode_of
from rebar.storage.boto import AwsError, S3NotFoundError
from rebar.storage.files import sha256_of
from rebar.storage.s3 import DOWNLOAD_PART_BYTES, DOWNLOAD_THREADS, MIB, S3Prefix, download, upload


def add(groups: Any) -> None:
    """Declare the commands."""
    group = add_group(groups, "data", "Datasets: local disks, S3, and downloads of ImageNet.")
    send = add_command(
        group,
        "send",
        _send,
        "Upload files to S3, in parallel, with the checksums that 'data stage' verifies.",
        "data send /nvme/train.beton /nvme/train.beton.json s3://my-bucket/betons",
        changes=False,
    )
    send.add_argument("files", type=Path, nargs="+", help="the files")
    send.add_argument("folder", help="s3://BUCKET/PREFIX")

    stage = add_command(
        group,
        "stage",
        _stage,
        "Download an S3 object to a local file, in parallel. Verifies its checksum, and resumes if interrupted.",
        "data stage s3://my-bucket/betons/train.beton /nvme/train.beton",
        changes=False,
    )
    stage.add_argument("source", help="s3://BUCKET/KEY; the sidecar of a .beton is downloaded too, if it exists")
    stage.add_argument("target", type=Path, help="the local file")
    stage.add_argument("--sha256", help="expected SHA-256 (default: the checksum that S3 has)")
    stage.add_argument("--unverified", action="store_true", help="accept an object without a checksum in S3")
    stage.add_argument(
        "--workers", type=positive, default=DOWNLOAD_THREADS, help="parallel requests (default: %(default)s)"
    )
    stage.add_argument(
        "--part-mib", type=positive, default=DOWNLOAD_PART_BYTES // MIB, help="MiB per request (default: %(default)s)"
    )

    disks = add_command(
        group,
        "disks",
        lambda options: prepare(options.folder, mode_of(options)),
        "Mount the instance store (NVMe) as root, several disks as RAID 0. Never formats disks that contain data.",
        "data disks /nvme --yes",
    )
    disks.add_argument("folder", type=Path, help="an empty folder; created if it does not exist")

    obtain = add_command(
        group,
        "obtain",
        _obtain,
        "Download ImageNet. Verifies checksums, resumes, and prints the --data-dir for write_dataset.py.",
        "data obtain kaggle --to /imagenet",
        changes=False,
    )
    obtain.add_argument(
        "sources", nargs="+", metavar="SOURCE", help=f"{SOURCES}; several are downloaded one after the other"
    )
    obtain.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="folder for the downloads")
    obtain.add_argument("--md5", type=Path, metavar="FILE", help="additional MD5s, in the format of md5sum")
    obtain.add_argument("--devkit", default=DEVKIT_URL, metavar="URL", help="development kit (default: %(default)s)")


def _send(options: argparse.Namespace) -> None:
    prefix, client = S3Prefix.parse(options.folder, "FOLDER"), clients_of(options)("s3")
    for path in options.files:
        if not path.is_file():
            raise AwsError(f"{path}: no such file.", code="file-not-found")
    for path in options.files:
        with path.open("rb") as file:
            sha256 = sha256_of(file)
            file.seek(0)
            upload(client, file, prefix.bucket, prefix.key(path.name), sha256=sha256)
        print(f"{prefix}/{path.name}: {path.stat().st_size / MIB:.1f} MiB", flush=True)


def _stage(options: argparse.Namespace) -> None:
    source = S3Prefix.parse(options.source, "SOURCE")
    if not source.prefix:
        raise AwsError(f"{source}: not an object. Use s3://BUCKET/KEY.", code="s3-invalid-url")
    client = clients_of(options)("s3")
    how = {
        "threads": options.workers,
        "part_bytes": options.part_mib * MIB,
        "unverified": options.unverified,
    }
    is_new = download(client, source.bucket, source.prefix, options.target, sha256=options.sha256, **how)
    print(f"{options.target}: {'downloaded from' if is_new else 'unchanged, identical to'} {source}")
    if source.prefix.endswith(".beton"):
        sidecar = options.target.with_name(options.target.name + ".json")
        try:
            download(client, source.bucket, source.prefix + ".json", sidecar, **how)
            print(f"{sidecar}: downloaded")
        except S3NotFoundError:
            pass


def _obtain(options: argparse.Namespace) -> None:
    md5 = read_checksums(options.md5) if options.md5 else None
    print(download_imagenet(clients_of(options), options.sources, options.to, md5=md5, devkit=options.devkit))
