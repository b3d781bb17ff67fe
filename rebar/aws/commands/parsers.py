"""How every command is declared: its help ends with an example, its options' names are shared."""

import argparse
import os
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from rebar.aws.client import Clients
from rebar.aws.cost import EBS_GB_MONTH
from rebar.aws.plan import add_mode
from rebar.aws.tags import Identity, expiry

Run = Callable[[argparse.Namespace], None]


def add_group(groups: Any, name: str, summary: str) -> Any:
    """A group of commands, such as ``volume``; returns where its commands are added."""
    parser = groups.add_parser(name, help=summary, description=summary)
    return parser.add_subparsers(dest="command", required=True, metavar="COMMAND")


def add_command(
    group: Any, name: str, run: Run, summary: str, example: str, *, changes: bool = True
) -> argparse.ArgumentParser:
    """One command; ``changes``: it prints a plan and has ``--yes`` and ``--check``."""
    parser: argparse.ArgumentParser = group.add_parser(
        name,
        help=summary[0].lower() + summary[1:].rstrip("."),
        description=summary,
        epilog=f"example:\n  python -m rebar.aws {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--region", help="AWS region; default: the environment's or the AWS configuration's")
    parser.add_argument(
        "--project",
        default=os.environ.get("REBAR_PROJECT", "rebar"),
        help="whose things these are: only what carries this tag is touched (default: $REBAR_PROJECT or %(default)s)",
    )
    if changes:
        add_mode(parser)
    return parser


def add_identity(parser: argparse.ArgumentParser, role: str, *, may_expire: bool = True) -> None:
    """Whose and what for: the tags of a new thing; ``may_expire``: it costs money until it is ended."""
    parser.add_argument("--run", dest="run_name", required=True, metavar="NAME", help="what this belongs to")
    parser.add_argument("--role", default=role, help="what it is for (default: %(default)s)")
    parser.add_argument("--owner", default="", help="a person or team, for the tag; do not put anything secret here")
    parser.set_defaults(expires_days=None)
    if may_expire:
        add_expiry(parser)


def add_expiry(parser: argparse.ArgumentParser) -> None:
    """When a thing that costs money is no longer needed."""
    parser.add_argument("--expires-days", type=positive, metavar="DAYS", help="'cost sweep' reports it afterwards")


def add_volume_kind(parser: argparse.ArgumentParser) -> None:
    """Where a new volume is, and how fast."""
    parser.add_argument("--zone", required=True, help="availability zone, such as us-east-1a: the machine's")
    parser.add_argument("--type", default="gp3", choices=sorted(EBS_GB_MONTH), help="default: %(default)s")
    parser.add_argument("--throughput", type=positive, help="MiB/s; gp3 only, beyond 125 it costs more")


def expiry_of(options: argparse.Namespace) -> datetime | None:
    """The time that the option of :func:`add_expiry` says."""
    return expiry(options.expires_days) if options.expires_days else None


def identity_of(options: argparse.Namespace) -> Identity:
    """The identity that the options of :func:`add_identity` say."""
    return Identity(options.project, options.run_name, options.role, options.owner, expiry_of(options))


def clients_of(options: argparse.Namespace) -> Clients:
    """AWS, in the region asked for."""
    return Clients(options.region)


def positive(text: str) -> int:
    """A whole number above zero."""
    if not re.fullmatch(r"[1-9]\d{0,17}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
    return int(text)


def instance_id(text: str) -> str:
    """An id of a machine."""
    if not re.fullmatch(r"i-[0-9a-f]{8,17}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no machine's id, which looks like i-0123456789abcdef0")
    return text
