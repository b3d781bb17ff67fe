"""The commands ``run upload|fetch``."""

import argparse
from pathlib import Path
from typing import Any

from rebar.aws.commands.parsers import add_command, add_group, clients_of
from rebar.aws.run_archive import fetch_run, upload_run
from rebar.storage.s3 import MIB, S3Prefix

PREFIX = "s3://BUCKET/PREFIX/RUN_ID"


def add(groups: Any) -> None:
    """Declare the commands."""
    group = add_group(groups, "run", "Upload a run folder to S3, and download it to resume on another machine.")
    upload = add_command(
        group,
        "upload",
        _upload,
        "Upload a run's checkpoints and records. If interrupted, the previous upload stays valid.",
        "run upload runs/g5-16 s3://my-bucket/runs/g5-16",
        changes=False,
    )
    upload.add_argument("folder", type=Path, help="the run's folder (--logging.folder)")
    upload.add_argument("url", metavar="to", help=PREFIX)

    fetch = add_command(
        group,
        "fetch",
        _fetch,
        "Download a run to resume it, and verify its checksums. Does nothing if the run is not uploaded yet.",
        "run fetch s3://my-bucket/runs/g5-16 runs/g5-16",
        changes=False,
    )
    fetch.add_argument("url", metavar="from", help=PREFIX)
    fetch.add_argument("folder", type=Path, help="the run's folder (--logging.folder)")
    fetch.add_argument("--replace", action="store_true", help="replace a different checkpoint in the folder")


def _upload(options: argparse.Namespace) -> None:
    prefix = S3Prefix.parse(options.url, "to")
    done = upload_run(clients_of(options)("s3"), options.folder, prefix)
    print(f"{prefix}: step {done.step}, {done.checkpoints} new checkpoints, {done.bytes / MIB:.1f} MiB")


def _fetch(options: argparse.Namespace) -> None:
    prefix = S3Prefix.parse(options.url, "from")
    manifest = fetch_run(clients_of(options)("s3"), prefix, options.folder, replace=options.replace)
    if manifest is None:
        print(f"{prefix}: no uploaded run")
    else:
        print(f"{options.folder}: the run at step {manifest.progress.step}, uploaded by {manifest.host}")
