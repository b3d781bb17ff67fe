"""``spot watch``."""

import argparse
import sys
from pathlib import Path
from typing import Any

from rebar.aws.client import AwsError
from rebar.aws.commands.parsers import add_command, add_group, clients_of, positive
from rebar.aws.s3_transfer import s3_folder
from rebar.aws.spot_watch import Watch, watch
from rebar.aws.training_process import OneProcess, ProcessGroup, Training, Unit, from_pidfile


def add(groups: Any) -> None:
    """Declare the commands."""
    group = add_group(groups, "spot", "Machines that EC2 may take back.")
    command = add_command(
        group,
        "watch",
        _watch,
        "Watch over a training that runs on this spot machine: on EC2's notice ask it to stop, wait until it has "
        "saved, and upload checkpoint and log before the end. Exit status: 0 it has finished, 75 interrupted and "
        "saved (start it again elsewhere), 1 failed or not saved in time.",
        "spot watch runs/g5-16 s3://my-bucket/runs/g5-16 --pid 4711",
        changes=False,
    )
    command.add_argument("folder", type=Path, help="the run's folder (--logging.folder)")
    command.add_argument("place", metavar="to", help="s3://BUCKET/PREFIX/RUN_ID, from which the next machine goes on")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--pid", type=positive, help="process id of the training, or of torchrun")
    which.add_argument("--pidfile", type=Path, help="file that holds the process id")
    which.add_argument("--group", type=positive, metavar="PGID", help="process group of torchrun")
    which.add_argument("--unit", help="systemd's unit that it runs in")
    command.add_argument("--poll-seconds", type=float, default=5.0, help="how often to look (default: %(default)s)")
    command.add_argument(
        "--upload-seconds",
        type=float,
        default=45.0,
        help="kept free for uploading before the end (default: %(default)s)",
    )


def _watch(options: argparse.Namespace) -> None:
    if options.poll_seconds <= 0 or options.upload_seconds < 0:
        raise AwsError("--poll-seconds must be above zero, --upload-seconds not below")
    place = s3_folder(options.place, "to")
    if not options.folder.is_dir():
        raise AwsError(f"{options.folder} is no folder: give the run's --logging.folder")
    what = Watch(options.folder, place, options.poll_seconds, options.upload_seconds)
    status = watch(clients_of(options), _training(options), what)
    if status:
        sys.exit(status)


def _training(options: argparse.Namespace) -> Training:
    if options.pid:
        return OneProcess(options.pid)
    if options.pidfile:
        return from_pidfile(options.pidfile)
    return ProcessGroup(options.group) if options.group else Unit(options.unit)
