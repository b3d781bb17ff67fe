"""``snapshot create|list|restore|verify``."""

import argparse
from typing import Any

from rebar.aws.attach import describe_instance
from rebar.aws.commands.parsers import (
    add_command,
    add_expiry,
    add_group,
    add_volume_kind,
    clients_of,
    expiry_of,
    instance_id,
    positive,
)
from rebar.aws.create_snapshot import create_snapshot
from rebar.aws.instances import Machine, this_machine
from rebar.aws.plan import mode_of
from rebar.aws.snapshots import as_table, find_snapshots, get_snapshot, restore_snapshot
from rebar.aws.tags import PROJECT
from rebar.aws.verify_snapshot import verify_snapshot
from rebar.aws.volumes import get_volume

SNAPSHOT = "snap-…, or RUN/ROLE for its newest"


def add(groups: Any) -> None:
    """Declare the commands."""
    group = add_group(groups, "snapshot", "Snapshots whose content is known to be whole.")

    create = add_command(
        group,
        "create",
        _create,
        "Take checksums of all files, unmount, snapshot, and wait until it is complete; as root, on the machine.",
        "snapshot create imagenet/beton --yes",
    )
    create.add_argument("volume", help="vol-…, or RUN/ROLE such as imagenet/beton; attached to this machine")
    create.add_argument(
        "--keep-mounted",
        action="store_true",
        help="freeze instead of unmounting; such a snapshot does not allow deleting the volume",
    )

    add_command(group, "list", _list, "List our snapshots, newest first.", "snapshot list", changes=False)

    restore = add_command(
        group,
        "restore",
        _restore,
        "Make a volume from a snapshot; run again, it finds the same one.",
        "snapshot restore imagenet/beton --zone us-east-1b --expires-days 2 --yes",
    )
    restore.add_argument("snapshot", help=SNAPSHOT)
    add_volume_kind(restore)
    restore.add_argument("--run", dest="run_name", metavar="NAME", help="default: the snapshot's")
    restore.add_argument("--role", help="default: the snapshot's")
    restore.add_argument("--size", type=positive, help="GiB, at least the snapshot's, which is the default")
    add_expiry(restore)

    verify = add_command(
        group,
        "verify",
        _verify,
        "Restore a snapshot to a temporary volume on this machine and compare every file; as root.",
        "snapshot verify imagenet/beton --yes",
    )
    verify.add_argument("snapshot", help=SNAPSHOT)
    verify.add_argument("--instance", type=instance_id, metavar="i-…", help="default: this machine")
    verify.add_argument("--again", action="store_true", help="even if it was verified before")


def _create(options: argparse.Namespace) -> None:
    clients = clients_of(options)
    volume = get_volume(clients, options.volume, options.project)
    create_snapshot(clients, volume, mode_of(options), keep_mounted=options.keep_mounted)


def _list(options: argparse.Namespace) -> None:
    print(as_table(find_snapshots(clients_of(options), {PROJECT: options.project})))


def _restore(options: argparse.Namespace) -> None:
    clients = clients_of(options)
    restore_snapshot(
        clients,
        get_snapshot(clients, options.snapshot, options.project),
        zone=options.zone,
        mode=mode_of(options),
        run=options.run_name,
        role=options.role,
        size=options.size,
        kind=options.type,
        throughput=options.throughput,
        expires=expiry_of(options),
    )


def _verify(options: argparse.Namespace) -> None:
    clients = clients_of(options)
    if options.instance:
        placement = describe_instance(clients, options.instance)["Placement"]
        machine = Machine(options.instance, placement["AvailabilityZone"])
    else:
        machine = this_machine()
    snapshot = get_snapshot(clients, options.snapshot, options.project)
    verify_snapshot(clients, snapshot, machine, mode_of(options), again=options.again)
