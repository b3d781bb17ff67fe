"""Call AWS, print plans before changes, and run programs. Failures raise AwsError.

A command prints its steps. ``--check`` asks AWS for permission (DryRun), ``--yes`` executes them.
"""

import argparse
import inspect
import math
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from rebar.storage.aws import AwsError, aws_error_code, make_client, translate_aws_error


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


Argument = Callable[[Any], object]
"""Adds an argument to a parser."""
Run = Callable[[Aws, Namespace], None]


def argument(*names: str, **keywords: Any) -> Argument:
    """Return a function that calls ``add_argument`` of a parser."""
    return lambda parser: parser.add_argument(*names, **keywords)


def one_of(*arguments: Argument, required: bool = False) -> Argument:
    """Return a function that adds mutually exclusive arguments to a parser."""

    def add(parser: argparse.ArgumentParser) -> None:
        group = parser.add_mutually_exclusive_group(required=required)
        for each in arguments:
            each(group)

    return add


@dataclass(frozen=True)
class Command:
    """A command ``GROUP NAME``. With ``changes`` it prints a plan and gets the flags ``--yes`` and ``--check``."""

    name: str
    example: str
    arguments: Sequence[Argument]
    changes: bool
    run: Run

    def add_to(self, group: Any) -> None:
        """Add the command to the subparsers of its group."""
        text = inspect.getdoc(self.run) or ""
        summary = text.partition("\n")[0]
        parser: argparse.ArgumentParser = group.add_parser(
            self.name.partition(" ")[2],
            help=summary[:1].lower() + summary[1:].rstrip("."),
            description=text,
            epilog=f"example:\n  python -m rebar.aws {self.name} {self.example}".rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=self.run, yes=False, check=False, expires_days=None, owner="")
        for each in [REGION, PROJECT, *([MODE] if self.changes else []), *self.arguments]:
            each(parser)


COMMANDS: dict[str, Command] = {}


def command(name: str, example: str, *arguments: Argument, changes: bool = True) -> Callable[[Run], Run]:
    """Register a function as the command ``GROUP NAME``. Its docstring is the help text."""

    def register(run: Run) -> Run:
        COMMANDS[name] = Command(name, example, arguments, changes, run)
        return run

    return register


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align the columns of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def positive(text: str) -> int:
    """Parse a positive integer."""
    if not re.fullmatch(r"[1-9]\d{0,17}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _instance_id(text: str) -> str:
    if not re.fullmatch(r"i-[0-9a-f]{8,17}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an instance id such as i-0123456789abcdef0")
    return text


REGION = argument("--region", help="AWS region (default: from the environment or the AWS configuration)")
PROJECT = argument(
    "--project",
    default=os.environ.get("REBAR_PROJECT", "rebar"),
    help="use and change only resources with this project tag (default: $REBAR_PROJECT or %(default)s)",
)
MODE = one_of(
    argument("--yes", action="store_true", help="execute the plan; without it the plan is only printed"),
    argument("--check", action="store_true", help="ask AWS whether the plan is allowed (DryRun)"),
)
EXPIRES = argument(
    "--expires-days", type=positive, metavar="DAYS", help="'cost sweep' reports the resource after this time"
)
INSTANCE = argument("--instance", type=_instance_id, metavar="i-…", help="default: this machine")
CONFIG = argument("--config", help="config file (default: the instance type's in rn50_configs/)")
