"""What a machine on EC2 knows of itself: the instance metadata service, version 2.

``AWS_EC2_METADATA_SERVICE_ENDPOINT`` and ``AWS_EC2_METADATA_DISABLED`` mean what they mean to AWS's own tools.
"""

import os
import urllib.error
import urllib.request
from dataclasses import dataclass

from rebar.cloud.errors import CloudError

ENDPOINT = "http://169.254.169.254"
SECONDS = 2.0
TOKEN_LIFE = 300


@dataclass(frozen=True)
class Machine:
    """The machine this runs on."""

    instance_id: str
    zone: str


def this_machine() -> Machine:
    """This machine's id and zone; raises CloudError where it is no EC2 machine."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise CloudError("this machine cannot ask who it is (AWS_EC2_METADATA_DISABLED): give --instance")
    try:
        token = _request("latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFE)})
        headers = {"X-aws-ec2-metadata-token": token}
        return Machine(
            _request("latest/meta-data/instance-id", "GET", headers),
            _request("latest/meta-data/placement/availability-zone", "GET", headers),
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise CloudError(
            f"this is no EC2 machine, or its metadata service is off ({reason}): give --instance"
        ) from None


def _request(path: str, method: str, headers: dict[str, str]) -> str:
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ENDPOINT
    request = urllib.request.Request(f"{endpoint.rstrip('/')}/{path}", method=method, headers=headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    with direct.open(request, timeout=SECONDS) as answer:
        text: str = answer.read(4096).decode()
    return text.strip()
