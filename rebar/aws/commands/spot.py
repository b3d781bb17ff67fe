"""The command ``spot watch``."""

import argparse
import sys
from pathlib import Path
from typing import Any

from rebar.aws.commands.parsers import add_command, add_group, clients_of, positive
from rebar.aws.spot_watch import Watch, watch
from rebar.aws.training_process import Training, process, process_from_pidfile, process_group, systemd_unit
from rebar.storage.boto import AwsError
from rebar.storage.s3 import S3Prefix


def add(groups: Any) -> None:
    """Declare the commands."""
    group = add_group(groups, "spot", "Handle interruptions of spot instances.")
    command = add_command(
        group,
        "watch",
        _watch,
        "Watch training on this spot instance. On EC2's interruption notice, stop training, wait until it has saved a "
        "checkpoint, and upload checkpoints and log. Exit status: 0 finished, 75 interrupted and saved (start it again "
        "on another instance), 1 failed or not saved in time.",
        "spot watch runs/g5-16 s3://my-bucket/runs/g5-16 --pid 4711",
        changes=False,
    )
    command.add_argument("folder", type=Path, help="the run's folder (--logging.folder)")
    command.add_argument("url", metavar="to", help="s3://BUCKET/PREFIX/RUN_ID, from which the next instance resumes")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--pid", type=positive, help="process id of training, or of torchrun")
    which.add_argument("--pidfile", type=Path, help="file with the process id")
    which.add_argument("--group", type=positive, metavar="PGID", help="process group of torchrun")
    which.add_argument("--unit", help="systemd unit of training")
    command.add_argument(
        "--poll-seconds", type=float, default=5.0, help="seconds between checks (default: %(default)s)"
    )
    command.add_argument(
        "--upload-seconds",
        type=float,
        default=45.0,
        help="seconds reserved for the upload before the interruption (default: %(default)s)",
    )


def _watch(options: argparse.Namespace) -> None:
    if options.poll_seconds <= 0 or options.upload_seconds < 0:
        raise AwsError("--poll-seconds must be > 0, --upload-seconds must be >= 0.", code="aws-option-invalid")
    prefix = S3Prefix.parse(options.url, "to")
    if not options.folder.is_dir():
        raise AwsError(f"{options.folder}: no such folder. Use the --logging.folder of training.", code="run-not-found")
    how = Watch(options.folder, prefix, options.poll_seconds, options.upload_seconds)
    status = watch(clients_of(options)("s3"), _training(options), how)
    if status:
        sys.exit(status)


def _training(options: argparse.Namespace) -> Training:
    if options.pid:
        return process(options.pid)
    if options.pidfile:
        return process_from_pidfile(options.pidfile)
    return process_group(options.group) if options.group else systemd_unit(options.unit)
