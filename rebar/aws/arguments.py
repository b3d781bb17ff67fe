"""Declare commands, the arguments that several of them share, and the tables that they print."""

import argparse
import inspect
import os
import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rebar.aws.client import Aws
from rebar.aws.tags import Identity, expiry
from rebar.storage.s3 import S3Prefix

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
RESULTS = argument(
    "--results", required=True, help="s3://… folder; the checkpoint of an earlier attempt is read from there"
)
CONFIG = argument("--config", help="config file (default: the instance type's in rn50_configs/)")


def identity_arguments(role: str) -> list[Argument]:
    """Return the options that :func:`identity_of` reads; ``role`` is the default of ``--role``."""
    return [
        argument("--run", dest="run_name", required=True, metavar="NAME", help="name of the run"),
        argument("--role", default=role, help="purpose of this resource in the run (default: %(default)s)"),
        argument("--owner", default="", help="person or team, for the tag; tags are not secret"),
    ]


def identity_of(options: Namespace) -> Identity:
    """Return the identity set by the options of :func:`identity_arguments` and by ``--expires-days``."""
    expires = expiry(options.expires_days) if options.expires_days else None
    return Identity(options.project, options.run_name, options.role, options.owner, expires)


def run_prefix(options: Namespace) -> S3Prefix:
    """Return the run's own folder below ``--results``. Raises AwsError ``s3-invalid-url``."""
    return S3Prefix.parse(options.results, "--results").below(f"{options.project}/{options.run_name}")
