"""``data send``."""

import argparse
from pathlib import Path
from typing import Any

from rebar.aws.client import AwsError
from rebar.aws.commands.parsers import add_command, clients_of
from rebar.aws.s3_transfer import s3_folder, send_file, sha256_of


def add(group: Any) -> None:
    """Declare the command, in the group ``data``."""
    command = add_command(
        group,
        "send",
        _send,
        "Copy files to a folder of S3: in parallel, with checksums for 'data stage' to compare.",
        "data send /nvme/train.beton /nvme/train.beton.json s3://my-bucket/betons",
        changes=False,
    )
    command.add_argument("files", type=Path, nargs="+", help="the files")
    command.add_argument("folder", help="s3://BUCKET/FOLDER")


def _send(options: argparse.Namespace) -> None:
    folder, clients = s3_folder(options.folder, "the folder"), clients_of(options)
    for file in options.files:
        if not file.is_file():
            raise AwsError(f"{file} is no file")
    for file in options.files:
        send_file(clients, file, folder.bucket, folder.key(file.name), sha256=sha256_of(file))
        print(f"{folder}/{file.name}: {file.stat().st_size / 2**20:.1f} MiB", flush=True)
