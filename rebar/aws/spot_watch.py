"""``spot watch``: stop training on a spot instance before EC2 interrupts it, and upload its checkpoints.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rebar.aws.arguments import argument, command, one_of, positive
from rebar.aws.client import Aws
from rebar.aws.run_archive import FOLDER, URL, upload_run
from rebar.aws.training_process import Training, process, process_from_pidfile, process_group, systemd_unit
from rebar.cli import warn
from rebar.storage.boto import AwsError
from rebar.storage.ec2_metadata import SPOT_NOTICE, InstanceMetadata
from rebar.storage.run_status import RunStatus, read_status
from rebar.storage.s3 import MIB, S3Prefix

REBALANCE = "events/recommendations/rebalance"
NOTICE_SECONDS = 120.0
"""Seconds from a notice to the interruption, if the notice has no valid time."""
EXIT_PREEMPTED = 75
"""Exit status of training that was interrupted and has saved a checkpoint. Start it again."""
CHECK_SECONDS = 0.2
CLOCK_TOLERANCE_SECONDS = 0.5
"""Maximum error of a process's start time, which is computed from the boot time."""


@dataclass(frozen=True)
class Notice:
    """EC2's interruption notice; ``action``: ``terminate``, ``stop`` or ``hibernate``."""

    action: str
    time: datetime | None

    @classmethod
    def parse(cls, text: str) -> "Notice":
        """Parse a notice. A notice that cannot be parsed means termination in two minutes."""
        try:
            content = json.loads(text)
            time = datetime.strptime(content["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
            return cls(str(content["action"]), time)
        except (ValueError, KeyError, TypeError):
            return cls("terminate", None)

    @property
    def seconds_left(self) -> float:
        """Seconds until the interruption."""
        if self.time is None:
            return NOTICE_SECONDS
        return min(max((self.time - datetime.now(timezone.utc)).total_seconds(), 0.0), NOTICE_SECONDS)


@command(
    "spot watch",
    "runs/g5-16 s3://my-bucket/runs/g5-16 --pid 4711",
    FOLDER,
    argument("url", metavar="to", help=f"{URL}, from which the next instance resumes"),
    one_of(
        argument("--pid", type=positive, help="process id of training, or of torchrun"),
        argument("--pidfile", type=Path, help="file with the process id"),
        argument("--group", type=positive, metavar="PGID", help="process group of torchrun"),
        argument("--unit", help="systemd unit of training"),
        required=True,
    ),
    argument("--poll-seconds", type=float, default=5.0, help="seconds between checks (default: %(default)s)"),
    argument(
        "--upload-seconds",
        type=float,
        default=45.0,
        help="seconds reserved for the upload before the interruption (default: %(default)s)",
    ),
    changes=False,
)
def _watch_command(aws: Aws, options: Namespace) -> None:
    """Watch training on this spot instance.

    On EC2's interruption notice, stop training, wait until it has saved a checkpoint, and upload checkpoints and log.
    Exit status: 0 finished, 75 interrupted and saved (start it again on another instance), 1 failed or not saved in
    time.
    """
    if options.poll_seconds <= 0 or options.upload_seconds < 0:
        raise AwsError("--poll-seconds must be > 0, --upload-seconds must be >= 0.", code="aws-option-invalid")
    prefix = S3Prefix.parse(options.url, "to")
    if not options.folder.is_dir():
        raise AwsError(f"{options.folder}: no such folder. Use the --logging.folder of training.", code="run-not-found")
    if status := _watch(aws("s3"), _training(options), options, prefix):
        sys.exit(status)


def _training(options: Namespace) -> Training:
    if options.pid:
        return process(options.pid)
    if options.pidfile:
        return process_from_pidfile(options.pidfile)
    return process_group(options.group) if options.group else systemd_unit(options.unit)


def _watch(client: Any, training: Training, options: Namespace, prefix: S3Prefix) -> int:
    """Wait for the notice or for the end of training, then upload the run; return the exit status.

    The upload starts at the latest ``--upload-seconds`` before the interruption.

    0: training has finished; 75: it was interrupted, and everything is saved and uploaded. Raises AwsError if
    training failed (``training-failed``, ``training-killed``), if it did not save in time (``training-not-saved``),
    or if the upload failed.
    """
    notice = _wait_for_notice(training, options.poll_seconds)
    is_saved = True
    if notice is None:
        print(f"{training.name} has ended", flush=True)
    else:
        seconds = notice.seconds_left
        print(f"EC2 notice: {notice.action} in {seconds:.0f} s; stopping {training.name}", flush=True)
        is_saved = _stop(training, options.folder, time.monotonic() + seconds - options.upload_seconds)
    started = time.monotonic()
    done = upload_run(client, options.folder, prefix)
    seconds = time.monotonic() - started
    print(f"uploaded to {prefix}: step {done.step}, {done.bytes / MIB:.1f} MiB in {seconds:.1f} s", flush=True)
    if not is_saved:
        raise AwsError(
            f"training did not save in time. {prefix} has an earlier checkpoint, from which the next "
            "instance resumes. Save more often with --every-steps or --every-minutes.",
            code="training-not-saved",
        )
    return _exit_status(_status(training, options.folder))


def _wait_for_notice(training: Training, poll_seconds: float) -> Notice | None:
    """Return the notice; None if training ends first."""
    service, is_unreachable, is_recommended = InstanceMetadata(), False, False
    while training.is_running():
        try:
            if (text := service.get(SPOT_NOTICE)) is not None:
                return Notice.parse(text)
            if not is_recommended and service.get(REBALANCE) is not None:
                is_recommended = True
                warn("EC2 sent a rebalance recommendation: this instance may be interrupted soon")
            is_unreachable = False
        except (OSError, ValueError) as error:
            if not is_unreachable:  # warn once
                warn(f"{service.endpoint} does not answer, so spot interruptions are not detected ({error})")
            is_unreachable = True
        _wait(lambda: not training.is_running(), time.monotonic() + poll_seconds)
    return None


def _status(training: Training, folder: Path) -> RunStatus | None:
    """Return the status that this attempt of training wrote; None if it is from an earlier attempt."""
    status = read_status(folder / "status.json")
    is_own = status is not None and status.time > training.started - CLOCK_TOLERANCE_SECONDS
    return status if is_own else None


def _stop(training: Training, folder: Path, deadline: float) -> bool:
    """Stop training. Returns whether it has saved everything by the deadline."""

    def is_saved() -> bool:
        status = _status(training, folder)
        return status is not None and status.has_ended

    if not is_saved():  # training may have received the notice itself
        training.stop()
    _wait(lambda: is_saved() or not training.is_running(), deadline)
    return is_saved()


def _wait(condition: Callable[[], bool], deadline: float) -> None:
    while not condition() and time.monotonic() < deadline:
        time.sleep(min(CHECK_SECONDS, max(0.0, deadline - time.monotonic())))


def _exit_status(status: RunStatus | None) -> int:
    if status is None or not status.has_ended:
        raise AwsError(
            "training was killed: status.json does not contain the end of the run. The same command resumes it.",
            code="training-killed",
        )
    if status.state == "failed":
        raise AwsError(f"training failed: {status.reason}", code="training-failed")
    print(f"{status.state} at epoch {status.epoch}, step {status.step}{': ' + status.reason if status.reason else ''}")
    return EXIT_PREEMPTED if status.state == "interrupted" else 0
