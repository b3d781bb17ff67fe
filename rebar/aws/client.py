"""Call AWS, print plans before changes, and run programs. Failures raise AwsError.

A command prints its steps. ``--check`` asks AWS for permission (DryRun), ``--yes`` executes them.
"""

import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from rebar.storage.boto import AwsError, aws_error_code, make_client, translate_aws_error


class Mode(Enum):
    """How to handle a plan: print it, ask AWS for permission (DryRun), or execute it."""

    PRINT = "print"
    CHECK = "check"
    EXECUTE = "execute"


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


@dataclass(frozen=True)
class Step:
    """One line of a plan, and the method of the EC2 client that executes it; None for steps without a dry run."""

    text: str
    method: Callable[..., Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def execute(self, **more: Any) -> Any:
        """Send the request; ``more`` adds or replaces parameters."""
        assert self.method is not None
        return call(self.text, self.method, **{**self.parameters, **more})

    def is_allowed(self) -> bool | None:
        """Return True if EC2 permits the call, None if it has no dry run. Raises AwsError if EC2 refuses."""
        if self.method is None:
            return None
        return call(self.text, self.method, none_if=["DryRunOperation"], **self.parameters, DryRun=True) is None


@dataclass(frozen=True)
class Aws:
    """The region, the project and the mode of a command. Region None: that of the environment or configuration."""

    region: str | None = None
    project: str = "rebar"
    mode: Mode = Mode.PRINT

    def __call__(self, service: str) -> Any:
        """Return a client of a service. Raises AwsError if boto3 is not installed or no region is configured."""
        return make_client(service, self.region)

    @cached_property
    def ec2(self) -> Any:
        """Return the client of EC2."""
        return self("ec2")

    @property
    def executes(self) -> bool:
        """Whether plans are executed (``--yes``)."""
        return self.mode is Mode.EXECUTE

    def confirm(self, title: str, steps: Sequence[Step]) -> bool:
        """Print a plan, and return whether to execute it. Raises AwsError if ``--check`` finds a refused step."""
        print(f"plan: {title}")
        for number, step in enumerate(steps, 1):
            print(f"  {number}. {step.text}")
        if self.mode is Mode.CHECK:
            _check(title, steps)
        elif self.mode is Mode.PRINT:
            print("nothing was changed; --check asks AWS for permission, --yes executes the plan")
        sys.stdout.flush()
        return self.executes


def _check(title: str, steps: Sequence[Step]) -> None:
    refusals = []
    for number, step in enumerate(steps, 1):
        try:
            print(f"  {number}: {'not checked: AWS has no dry run for it' if step.is_allowed() is None else 'allowed'}")
        except AwsError as error:
            print(f"  {number}: REFUSED")
            refusals.append(str(error))
    if refusals:
        raise AwsError(f"{title}: AWS would refuse: {'; '.join(refusals)}", code="aws-plan-refused")
    print("nothing was changed; --yes executes the plan")


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
