"""Manage AWS resources for training: volumes, snapshots, instances, jobs, and their costs.

    python -m rebar.aws --help
    python -m rebar.aws volume create --help

Commands that change something print a plan; --yes executes it, --check asks AWS for permission.
"""

import argparse
from collections.abc import Sequence

from rebar.aws import (  # noqa: F401  (each registers its commands)
    batch,
    cost,
    create_snapshot,
    download_imagenet,
    jobs,
    launch,
    mount,
    sagemaker,
    snapshots,
    spot_watch,
    transfer,
    volumes,
)
from rebar.aws.commands import COMMANDS, Aws, Mode
from rebar.cli import run_command

GROUPS = {
    "volume": ("Create, attach, mount and delete EBS volumes.", "create attach mount umount detach delete"),
    "snapshot": ("Create, verify and restore snapshots with checksums.", "create list restore verify"),
    "data": ("Datasets: local disks, S3, and downloads of ImageNet.", "send stage disks obtain"),
    "cost": ("Estimate costs, list resources that cost money, and terminate expired ones.", "estimate machines sweep"),
    "budget": ("Send e-mail when spending reaches a limit.", "create"),
    "launch": ("Launch an instance that trains, uploads the run, and terminates.", "single multi validate"),
    "userdata": ("Print the script that a launched instance runs.", "render"),
    "batch": ("Train, or write a .beton in parallel, with AWS Batch.", "register submit"),
    "sagemaker": ("Train with SageMaker.", "submit"),
    "run": ("Upload a run folder to S3, and download it to resume on another machine.", "upload fetch"),
    "spot": ("Handle interruptions of spot instances.", "watch"),
}
"""Summary and commands of each group, in the order of the help text."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m rebar.aws", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = parser.add_subparsers(dest="group", required=True, metavar="GROUP")
    for name, (summary, names) in GROUPS.items():
        group = groups.add_parser(name, help=summary, description=summary)
        commands = group.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for each in names.split():
            COMMANDS[f"{name} {each}"].add_to(commands)
    return parser


def main(argv: Sequence[str]) -> None:
    """Run one command. Raises RebarError."""
    options = build_parser().parse_args(list(argv))
    mode = Mode.EXECUTE if options.yes else Mode.CHECK if options.check else Mode.PRINT
    options.run(Aws(options.region, options.project, mode), options)


def command() -> None:
    """Run as the console command ``rebar-aws``."""
    run_command(main)


if __name__ == "__main__":
    command()
