"""How every command is declared: its help ends with an example, its options' names are shared."""

import argparse
import os
import re
from collections.abc import Callable
from typing import Any

from rebar.cloud.clients import Clients
from rebar.cloud.plan import add_mode
from rebar.cloud.tags import Identity, expiry

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
        epilog=f"example:\n  python -m rebar.cloud {example}",
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


def add_identity(
    parser: argparse.ArgumentParser, role: str, *, run_required: bool = True, may_expire: bool = True
) -> None:
    """Whose and what for: the tags of a new thing; ``may_expire``: it costs money until it is ended."""
    parser.add_argument("--run", dest="run_name", required=run_required, metavar="NAME", help="what this belongs to")
    parser.add_argument("--role", default=role, help="what it is for (default: %(default)s)")
    parser.add_argument("--owner", default="", help="a person or team, for the tag; do not put anything secret here")
    parser.set_defaults(expires_days=None)
    if may_expire:
        parser.add_argument("--expires-days", type=positive, metavar="DAYS", help="'cost sweep' reports it afterwards")


def identity_of(options: argparse.Namespace) -> Identity:
    """The identity that the options of :func:`add_identity` say."""
    expires = expiry(options.expires_days) if options.expires_days else None
    return Identity(options.project, options.run_name, options.role, options.owner, expires)


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
