"""What EC2 tells a spot machine of its end: a recommendation to leave, and the notice two minutes before.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html

Watch over a training on a spot machine: on EC2's notice it is asked to stop, and what it saved goes to S3.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from rebar.aws.client import AwsError, Clients
from rebar.aws.run_archive import Status, status_of, upload_run
from rebar.aws.s3_transfer import Folder
from rebar.aws.training_process import Training
from rebar.cli import warn
from rebar.storage.ec2_metadata import SPOT_NOTICE, InstanceMetadata

RECOMMENDATION = "events/recommendations/rebalance"
SHORTEST_SECONDS = 120.0
"""How long before the end a notice comes, for one that does not say when the end is."""


@dataclass(frozen=True)
class Notice:
    """``action``: ``terminate``, ``stop`` or ``hibernate``; ``time`` when it is done, None where it is not told."""

    action: str
    time: datetime | None


def notice(service: InstanceMetadata) -> Notice | None:
    """The notice, once there is one. Raises OSError and ValueError where the service does not answer."""
    told = service.get(SPOT_NOTICE)
    return None if told is None else _notice(told)


def leaving_is_recommended(service: InstanceMetadata) -> bool:
    """Whether EC2 finds this machine likelier than others to be taken soon. Raises OSError and ValueError."""
    return service.get(RECOMMENDATION) is not None


def _notice(told: str) -> Notice:
    """What cannot be read is a notice all the same."""
    try:
        content = json.loads(told)
        time = datetime.strptime(content["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
        return Notice(str(content["action"]), time)
    except (ValueError, KeyError, TypeError):
        return Notice("terminate", None)


EXIT_PREEMPTED = 75
"""As training's own: interrupted, saved, and to be started again."""
LOOK_SECONDS = 0.2
CLOCKS_DIFFER_SECONDS = 0.5
"""By how much a process may seem to begin later than it did: its beginning is counted from the machine's."""


@dataclass(frozen=True)
class Watch:
    """``upload_seconds``: kept free before the end for uploading; then an older checkpoint goes, if need be."""

    folder: Path
    place: Folder
    poll_seconds: float = 5.0
    upload_seconds: float = 45.0


def watch(clients: Clients, training: Training, what: Watch) -> int:
    """Wait for the notice or the training's end, upload, and say how it ended: an exit status.

    0: training has finished; 75: it was interrupted, all is saved and uploaded. Raises AwsError where training
    failed, where it did not save in time, or where uploading failed.
    """
    noticed = _wait_for_notice(training, what.poll_seconds)
    if noticed is not None:
        seconds = _seconds_left(noticed)
        print(f"EC2's notice: {noticed.action} in {seconds:.0f} s; {training} is asked to stop", flush=True)
        saved = _stop(training, what, time.monotonic() + seconds - what.upload_seconds)
    else:
        print(f"{training} has ended", flush=True)
        saved = True
    began = time.monotonic()
    done = upload_run(clients, what.folder, what.place)
    took = time.monotonic() - began
    print(f"uploaded to {what.place}: step {done.step}, {done.bytes / 2**20:.1f} MiB in {took:.1f} s", flush=True)
    if not saved:
        raise AwsError(
            f"training did not save in time: {what.place} holds the checkpoint before it, and the next machine goes on "
            "from there; --every-steps or --every-minutes makes them more frequent"
        )
    return _verdict(_its_status(training, what.folder))


def _wait_for_notice(training: Training, every: float) -> Notice | None:
    """Until there is a notice; None where training ends before."""
    service, told, recommended = InstanceMetadata(), False, False
    while training.is_running():
        try:
            noticed = notice(service)
            if noticed is not None:
                return noticed
            if not recommended and leaving_is_recommended(service):
                recommended = True
                warn("EC2 recommends to leave this machine: a notice of two minutes may follow soon")
            told = False
        except (OSError, ValueError) as error:
            if not told:  # once, not every few seconds
                warn(f"{service.endpoint} does not answer: a spot interruption would not be noticed ({error})")
            told = True
        _wait(lambda: not training.is_running(), time.monotonic() + every)
    return None


def _its_status(training: Training, folder: Path) -> Status:
    """What the training says of itself; what an earlier attempt left says nothing."""
    status = status_of(folder)
    return status if status.time > training.began - CLOCKS_DIFFER_SECONDS else Status()


def _stop(training: Training, what: Watch, deadline: float) -> bool:
    """Ask training to stop; whether it has saved all by the deadline."""

    def saved() -> bool:
        return _its_status(training, what.folder).is_over

    if not saved():  # it may have seen the notice itself
        training.ask_to_stop()
    _wait(lambda: saved() or not training.is_running(), deadline)
    return saved()


def _wait(condition: Callable[[], bool], deadline: float) -> None:
    while not condition() and time.monotonic() < deadline:
        time.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))


def _seconds_left(noticed: Notice) -> float:
    if noticed.time is None:
        return SHORTEST_SECONDS
    left = (noticed.time - datetime.now(timezone.utc)).total_seconds()
    return min(max(left, 0.0), SHORTEST_SECONDS)


def _verdict(status: Status) -> int:
    if not status.is_over:
        raise AwsError("training ended without a word in its status.json: it was killed; the same command goes on")
    if status.state == "failed":
        raise AwsError(f"training failed: {status.reason}")
    print(f"{status.state} at epoch {status.epoch}, step {status.step}{': ' + status.reason if status.reason else ''}")
    return EXIT_PREEMPTED if status.state == "interrupted" else 0
