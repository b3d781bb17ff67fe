"""AWS's own time: what is compared with the time AWS gives a snapshot must not come from this machine's clock."""

import time
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

from rebar.cloud.clients import Clients
from rebar.cloud.errors import CloudError, told_clearly
from rebar.cloud.tags import LAST_MOUNT

SECOND = timedelta(seconds=1)
PAUSE_SECONDS = 0.1
LONGEST_SECONDS = 30.0


def aws_time(clients: Clients) -> datetime:
    """The time of EC2, rounded down to the second."""
    with told_clearly("asking AWS for the time"):
        answer = clients.ec2.describe_volumes(MaxResults=5)
    header = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    try:
        return parsedate_to_datetime(header).astimezone(timezone.utc)
    except ValueError:
        raise CloudError(f"AWS answered with the date {header!r}, which is none") from None


def wait_past(clients: Clients, moment: datetime) -> None:
    """Wait until AWS's time is after a moment at most seconds ahead; raises CloudError where it is far ahead."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while aws_time(clients) <= moment:
        if time.monotonic() > deadline:
            raise CloudError(
                f"the tag {LAST_MOUNT} says {moment:%Y-%m-%d %H:%M:%S} UTC, which AWS says has not come yet"
            )
        time.sleep(PAUSE_SECONDS)
