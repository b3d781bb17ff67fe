"""``spot watch``: stop training on a spot instance before EC2 interrupts it, and upload its checkpoints.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
"""

import json
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from rebar.aws.commands import Aws, argument, command, one_of, positive, run_program
from rebar.aws.transfer import FOLDER, URL, upload_run
from rebar.cli import warn
from rebar.storage.aws import SPOT_NOTICE, AwsError, InstanceMetadata
from rebar.storage.run_store import RunStatus, read_status
from rebar.storage.s3 import MIB, S3Prefix

REBALANCE = "events/recommendations/rebalance"
NOTICE_SECONDS = 120.0
"""Seconds from a notice to the interruption, if the notice has no valid time."""
EXIT_PREEMPTED = 75
"""Exit status of training that was interrupted and has saved a checkpoint. Start it again."""
CHECK_SECONDS = 0.2
CLOCK_TOLERANCE_SECONDS = 0.5
"""Maximum error of a process's start time, which is computed from the boot time."""


def _action_and_seconds(notice: str) -> tuple[str, float]:
    """Return what a notice announces, and the seconds until then.

    A notice that cannot be parsed means termination in two minutes.
    """
    try:
        content = json.loads(notice)
        time = datetime.strptime(content["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
        seconds = (time - datetime.now(timezone.utc)).total_seconds()
        return str(content["action"]), min(max(seconds, 0.0), NOTICE_SECONDS)
    except (ValueError, KeyError, TypeError):
        return "terminate", NOTICE_SECONDS


@dataclass(frozen=True)
class Training:
    """Training that another command started on this machine."""

    name: str
    started: float
    """Start time, in seconds since 1970."""
    is_running: Callable[[], bool]
    stop: Callable[[], object]
    """Send SIGTERM if training is running."""


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
        action, seconds = _action_and_seconds(notice)
        print(f"EC2 notice: {action} in {seconds:.0f} s; stopping {training.name}", flush=True)
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


def _wait_for_notice(training: Training, poll_seconds: float) -> str | None:
    """Return the notice; None if training ends first."""
    service, is_unreachable, is_recommended = InstanceMetadata(), False, False
    while training.is_running():
        try:
            if (notice := service.get(SPOT_NOTICE)) is not None:
                return notice
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
        return status is not None and status.state != "running"

    if not is_saved():  # training may have received the notice itself
        training.stop()
    _wait(lambda: is_saved() or not training.is_running(), deadline)
    return is_saved()


def _wait(condition: Callable[[], bool], deadline: float) -> None:
    while not condition() and time.monotonic() < deadline:
        time.sleep(min(CHECK_SECONDS, max(0.0, deadline - time.monotonic())))


def _exit_status(status: RunStatus | None) -> int:
    if status is None or status.state == "running":
        raise AwsError(
            "training was killed: status.json does not contain the end of the run. The same command resumes it.",
            code="training-killed",
        )
    if status.state == "failed":
        raise AwsError(f"training failed: {status.reason}", code="training-failed")
    print(f"{status.state} at epoch {status.epoch}, step {status.step}{': ' + status.reason if status.reason else ''}")
    return EXIT_PREEMPTED if status.state == "interrupted" else 0


# ------------------------------------------------------------------------------------------ processes


def _training(options: Namespace) -> Training:
    """Return the training of a process, such as torchrun (which forwards SIGTERM to its workers), a group or a unit.

    Raises AwsError ``training-not-running``, ``pidfile-invalid``.
    """
    if options.unit:
        return _unit(options.unit)
    if options.group:
        return _group(options.group)
    try:
        pid = options.pid or int(options.pidfile.read_text())
    except (OSError, ValueError) as error:
        raise AwsError(f"{options.pidfile}: no process id can be read: {error}.", code="pidfile-invalid") from None
    try:
        found = psutil.Process(pid)  # knows its start time, so a later process with the same id is another
    except psutil.NoSuchProcess:
        raise _not_running(f"process {pid}") from None
    return _of_processes(f"process {pid}", lambda: [found] if _is_alive(found) else [])


def _group(group: int) -> Training:
    if group == os.getpgrp():
        raise AwsError(
            f"process group {group} is the one of this command. Start training with setsid, or use --pid.",
            code="training-not-running",
        )

    def members() -> list[psutil.Process]:
        return [each for each in psutil.process_iter() if _group_of(each) == group and _is_alive(each)]

    return _of_processes(f"process group {group}", members)


def _of_processes(name: str, find: Callable[[], list[psutil.Process]]) -> Training:
    """Return the training of the processes that ``find`` returns while they are running."""
    found = find()
    if not found:
        raise _not_running(name)
    return Training(name, min(map(_start_time_of, found)), lambda: bool(find()), lambda: _terminate(find()))


def _unit(name: str) -> Training:
    def show(what: str) -> str:
        return run_program("systemctl", "show", f"--property={what}", "--value", name).stdout.strip()

    def is_running() -> bool:
        return show("ActiveState") in ("active", "activating", "deactivating", "reloading")

    if not is_running():
        raise _not_running(f"the systemd unit {name}")
    started = time.time()
    with suppress(psutil.Error, ValueError):
        started = _start_time_of(psutil.Process(int(show("MainPID"))))
    return Training(
        f"unit {name}", started, is_running, lambda: run_program("systemctl", "kill", "--signal=SIGTERM", name)
    )


def _not_running(name: str) -> AwsError:
    return AwsError(f"{name} is not running on this machine. Start training first.", code="training-not-running")


def _start_time_of(found: psutil.Process) -> float:
    """Return the start time of a process. psutil rounds the boot time to seconds, so this uses the exact one."""
    exact_boot_time = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return float(found.create_time()) - psutil.boot_time() + exact_boot_time


def _is_alive(found: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(found.is_running() and found.status() != psutil.STATUS_ZOMBIE)
    return False


def _group_of(found: psutil.Process) -> int | None:
    try:
        return os.getpgid(found.pid)
    except ProcessLookupError:
        return None


def _terminate(processes: list[psutil.Process]) -> None:
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            try:
                each.send_signal(signal.SIGTERM)
            except psutil.AccessDenied:
                raise AwsError(
                    f"process {each.pid} belongs to another user. Run this command as that user, or as root.",
                    code="training-not-permitted",
                ) from None
