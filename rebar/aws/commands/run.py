"""``run upload|fetch``."""

import argparse
from pathlib import Path
from typing import Any

from rebar.aws.commands.parsers import add_command, add_group, clients_of
from rebar.aws.run_archive import fetch_run, upload_run
from rebar.aws.s3_transfer import s3_folder

PLACE = "s3://BUCKET/PREFIX/RUN_ID"


def add(groups: Any) -> None:
    """Declare the commands."""
    group = add_group(groups, "run", "A run's folder, kept in S3 for the next machine.")
    upload = add_command(
        group,
        "upload",
        _upload,
        "Upload a run's checkpoints and records; what was there before counts until all has arrived.",
        "run upload runs/g5-16 s3://my-bucket/runs/g5-16",
        changes=False,
    )
    upload.add_argument("folder", type=Path, help="the run's folder (--logging.folder)")
    upload.add_argument("place", metavar="to", help=PLACE)

    fetch = add_command(
        group,
        "fetch",
        _fetch,
        "Bring a run's folder from S3, checked, for training to go on from; nothing where there is none yet.",
        "run fetch s3://my-bucket/runs/g5-16 runs/g5-16",
        changes=False,
    )
    fetch.add_argument("place", metavar="from", help=PLACE)
    fetch.add_argument("folder", type=Path, help="the run's folder (--logging.folder)")
    fetch.add_argument("--replace", action="store_true", help="even where the folder has another checkpoint")


def _upload(options: argparse.Namespace) -> None:
    place = s3_folder(options.place, "to")
    done = upload_run(clients_of(options), options.folder, place)
    print(f"{place}: step {done.step}, {done.checkpoints} new checkpoints of {done.bytes / 2**20:.1f} MiB together")


def _fetch(options: argparse.Namespace) -> None:
    place = s3_folder(options.place, "from")
    found = fetch_run(clients_of(options), place, options.folder, replace=options.replace)
    if found is None:
        print(f"{place} holds no run yet")
    else:
        print(f"{options.folder}: the run at step {found.progress.step}, from {found.host}")
