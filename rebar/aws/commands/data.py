"""``data stage|disks|obtain``."""

import argparse
import re
from pathlib import Path
from typing import Any

from rebar.aws.archives import DEVKIT_URL, read_checksums
from rebar.aws.client import AwsError, code_of
from rebar.aws.commands import send
from rebar.aws.commands.parsers import add_command, add_group, clients_of, positive
from rebar.aws.download_imagenet import KNOWN, obtain
from rebar.aws.instance_store import prepare
from rebar.aws.plan import mode_of
from rebar.aws.staging import MIB, PART_BYTES, WORKERS, stage

URL = re.compile(r"s3://([^/\s]+)/([^\s]+[^/\s])")


def add(groups: Any) -> None:
    """Declare the commands."""
    group = add_group(groups, "data", "Data from S3 to a local disk, and back.")
    send.add(group)
    command = add_command(
        group,
        "stage",
        _stage,
        "Copy an object of S3 to a local file: in parallel, resumed after a kill, checked.",
        "data stage s3://my-bucket/betons/train.beton /nvme/train.beton",
        changes=False,
    )
    command.add_argument("source", help="s3://BUCKET/KEY; the sidecar of a .beton comes along where there is one")
    command.add_argument("target", type=Path, help="the file to make")
    command.add_argument("--sha256", help="what the contents must have; default: what S3 knows of them")
    command.add_argument("--unverified", action="store_true", help="accept contents of which S3 knows no checksum")
    command.add_argument("--workers", type=positive, default=WORKERS, help="ranges at once (default: %(default)s)")
    command.add_argument(
        "--part-mib", type=positive, default=PART_BYTES // MIB, help="size of a range (default: %(default)s)"
    )

    disks = add_command(
        group,
        "disks",
        lambda options: prepare(options.folder, mode_of(options)),
        "Mount the machine's own NVMe disks, several as a RAID 0; as root. What holds anything is never formatted.",
        "data disks /nvme --yes",
    )
    disks.add_argument("folder", type=Path, help="an empty folder, made where it is missing")

    fetch = add_command(
        group,
        "obtain",
        _obtain,
        "Fetch ImageNet, gone on with after a kill and checked; prints what write_dataset.py's --data-dir is to be.",
        "data obtain kaggle --to /imagenet",
        changes=False,
    )
    fetch.add_argument("sources", nargs="+", metavar="SOURCE", help=f"{KNOWN}; several are fetched one by one")
    fetch.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where what is fetched goes")
    fetch.add_argument(
        "--md5", type=Path, metavar="FILE", help="MD5s besides the published ones, in the form of md5sum"
    )
    fetch.add_argument("--devkit", default=DEVKIT_URL, metavar="URL", help="the development kit (default: %(default)s)")


def _obtain(options: argparse.Namespace) -> None:
    md5 = read_checksums(options.md5) if options.md5 else None
    print(obtain(clients_of(options), options.sources, options.to, md5=md5, devkit=options.devkit))


def _stage(options: argparse.Namespace) -> None:
    url = URL.fullmatch(options.source)
    if url is None:
        raise AwsError(f"{options.source!r} is no object of S3: give s3://BUCKET/KEY")
    bucket, key = url.groups()
    clients = clients_of(options)
    sizes = {"workers": options.workers, "part_bytes": options.part_mib * MIB, "unverified": options.unverified}
    new = stage(clients, bucket, key, options.target, sha256=options.sha256, **sizes)
    print(f"{options.target}: {'fetched' if new else 'there already'}, as in {options.source}")
    if key.endswith(".beton") and _exists(clients("s3"), bucket, key + ".json"):
        sidecar = options.target.with_name(options.target.name + ".json")
        stage(clients, bucket, key + ".json", sidecar, **sizes)
        print(f"{sidecar}: its sidecar")


def _exists(s3: Any, bucket: str, key: str) -> bool:
    from botocore.exceptions import ClientError

    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if code_of(error) in ("404", "NoSuchKey", "403"):
            return False
        raise AwsError(f"looking at s3://{bucket}/{key}: AWS answered {code_of(error)}") from None
    return True
