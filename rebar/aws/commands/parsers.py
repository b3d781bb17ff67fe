"""Declare commands with an example in every help text, and the options that several commands share."""

import argparse
import os
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from rebar.aws.client import Clients
from rebar.aws.plan import add_mode
from rebar.aws.tags import Identity, expiry

Argument = tuple[tuple[str, ...], dict[str, Any]]


def argument(*names: str, **keywords: Any) -> Argument:
    """Return the arguments of ``add_argument`` for :func:`add_command`."""
    return names, keywords


def add_group(groups: Any, name: str, summary: str) -> Any:
    """Add a group of commands, such as ``volume``. Returns the object to which its commands are added."""
    parser = groups.add_parser(name, help=summary, description=summary)
    return parser.add_subparsers(dest="command", required=True, metavar="COMMAND")


def add_command(
    group: Any,
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
    example: str,
    *arguments: Argument,
    changes: bool = True,
) -> argparse.ArgumentParser:
    """Add a command. With ``changes`` it prints a plan and gets the flags ``--yes`` and ``--check``."""
    parser: argparse.ArgumentParser = group.add_parser(
        name,
        help=summary[0].lower() + summary[1:].rstrip("."),
        description=summary,
        epilog=f"example:\n  python -m rebar.aws {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, expires_days=None)
    parser.add_argument("--region", help="AWS region (default: from the environment or the AWS configuration)")
    parser.add_argument(
        "--project",
        default=os.environ.get("REBAR_PROJECT", "rebar"),
        help="use and change only resources with this project tag (default: $REBAR_PROJECT or %(default)s)",
    )
    if changes:
        add_mode(parser)
    for names, keywords in arguments:
        parser.add_argument(*names, **keywords)
    return parser


def positive(text: str) -> int:
    """Parse a positive integer."""
    if not re.fullmatch(r"[1-9]\d{0,17}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def instance_id(text: str) -> str:
    """Parse the id of an instance."""
    if not re.fullmatch(r"i-[0-9a-f]{8,17}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an instance id such as i-0123456789abcdef0")
    return text


EXPIRES = argument(
    "--expires-days", type=positive, metavar="DAYS", help="'cost sweep' reports the resource after this time"
)
INSTANCE = argument("--instance", type=instance_id, metavar="i-…", help="default: this machine")


def identity_arguments(role: str) -> list[Argument]:
    """Return the options that :func:`identity_of` reads; ``role`` is the default of ``--role``."""
    return [
        argument("--run", dest="run_name", required=True, metavar="NAME", help="name of the run"),
        argument("--role", default=role, help="purpose of this resource in the run (default: %(default)s)"),
        argument("--owner", default="", help="person or team, for the tag; tags are not secret"),
    ]


def expiry_option(options: argparse.Namespace) -> datetime | None:
    """Return the time set by ``--expires-days``."""
    return expiry(options.expires_days) if options.expires_days else None


def identity_of(options: argparse.Namespace) -> Identity:
    """Return the identity set by the options of :func:`identity_arguments`."""
    return Identity(options.project, options.run_name, options.role, options.owner, expiry_option(options))


def clients_of(options: argparse.Namespace) -> Clients:
    """Return the clients for ``--region``."""
    return Clients(options.region)
