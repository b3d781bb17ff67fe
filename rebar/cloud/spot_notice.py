"""What EC2 tells a spot machine of its end: a recommendation to leave, and the notice two minutes before.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
"""

import json
from dataclasses import dataclass
from datetime import datetime, timezone

from rebar.instance_metadata import SPOT_NOTICE, InstanceMetadata

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
