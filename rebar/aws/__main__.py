"""AWS for training: volumes, snapshots, machines and what they cost.

    python -m rebar.aws --help
    python -m rebar.aws volume create --help

What changes anything prints its plan first; --yes does it, --check asks AWS whether it may be done.
"""

import argparse
from collections.abc import Sequence

from rebar.aws.commands import batch, cost, data, launch, run, sagemaker, snapshot, spot, volume
from rebar.cli import run_command


def build_parser() -> argparse.ArgumentParser:
    """All commands."""
    parser = argparse.ArgumentParser(
        prog="python -m rebar.aws", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = parser.add_subparsers(dest="group", required=True, metavar="GROUP")
    for module in (volume, snapshot, data, cost, launch, batch, sagemaker, run, spot):
        module.add(groups)
    return parser


def main(argv: Sequence[str]) -> None:
    """Run one command; raises RebarError."""
    options = build_parser().parse_args(list(argv))
    options.run(options)


def command() -> None:
    """Run as the console command ``rebar-aws``."""
    run_command(main)


if __name__ == "__main__":
    command()
