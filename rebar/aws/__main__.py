"""Manage AWS resources for training: volumes, snapshots, instances, jobs, and their costs.

    python -m rebar.aws --help
    python -m rebar.aws volume create --help

Commands that change something print a plan; --yes executes it, --check asks AWS for permission.
"""

import argparse
from collections.abc import Sequence

from rebar.aws.commands import cost, data, jobs, launch, run, spot, volumes
from rebar.cli import run_command


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m rebar.aws", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = parser.add_subparsers(dest="group", required=True, metavar="GROUP")
    for module in (volumes, data, cost, launch, jobs, run, spot):
        module.add(groups)
    return parser


def main(argv: Sequence[str]) -> None:
    """Run one command. Raises RebarError."""
    options = build_parser().parse_args(list(argv))
    options.run(options)


def command() -> None:
    """Run as the console command ``rebar-aws``."""
    run_command(main)


if __name__ == "__main__":
    command()
