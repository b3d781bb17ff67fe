"""Call AWS, and run programs of the operating system. Failures of both raise AwsError."""

import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rebar.storage.boto import AwsError, aws_error_code, make_client, translate_aws_error


@dataclass(frozen=True)
class Clients:
    """Create boto3 clients in one region. None: the region of the environment or of the AWS configuration."""

    region: str | None = None

    def __call__(self, service: str) -> Any:
        """Return a client of a service. Raises AwsError if boto3 is not installed or no region is configured."""
        return make_client(service, self.region)

    @cached_property
    def ec2(self) -> Any:
        """Return the client of EC2."""
        return self("ec2")


def call(action: str, method: Callable[..., Any], /, *, none_if: Sequence[str] = (), **parameters: Any) -> Any:
    """Call a method of a client. Returns None if AWS answers with an error code in ``none_if``.

    ``action`` describes the call in error messages, such as "describing vol-1".
    """
    with translate_aws_error(action):
        try:
            return method(**parameters)
        except Exception as error:
            if aws_error_code(error) in none_if:
                return None
            raise


PAGE = 100


def paginate(action: str, client: Any, operation: str, key: str, **parameters: Any) -> list[Any]:
    """Return the items under ``key`` from all pages of an operation."""
    with translate_aws_error(action):
        pages = client.get_paginator(operation).paginate(**parameters, PaginationConfig={"PageSize": PAGE})
        found: list[Any] = pages.build_full_result().get(key, [])
        return found


POLL_SECONDS = 5.0


def wait(action: str, client: Any, waiter: str, *, minutes: float, **parameters: Any) -> None:
    """Wait with one of boto3's waiters. Raises AwsError after ``minutes``, or if the resource fails."""
    config = {"Delay": POLL_SECONDS, "MaxAttempts": math.ceil(60 * minutes / POLL_SECONDS)}
    with translate_aws_error(action):
        client.get_waiter(waiter).wait(**parameters, WaiterConfig=config)


PACKAGES = {
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_repair": "xfsprogs",
    "mdadm": "mdadm",
}


def run_program(*words: str, accept: tuple[int, ...] = (0,)) -> "subprocess.CompletedProcess[str]":
    """Run a program. Raises AwsError if it is not installed, or if its exit status is not in ``accept``."""
    if shutil.which(words[0]) is None:
        package = PACKAGES.get(words[0], "util-linux")
        text = f"{words[0]} is not installed. Run apt-get install {package}."
        raise AwsError(text, code="program-missing")
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode not in accept:
        reason = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise AwsError(f"{' '.join(words)}: exit status {done.returncode}: {reason}", code="program-failed")
    return done
