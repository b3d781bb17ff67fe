"""``volume create|attach|mount|umount|detach|delete`` and ``snapshot create|list|restore|verify``."""

import argparse
from pathlib import Path
from typing import Any

from rebar.aws.commands.parsers import (
    EXPIRES,
    INSTANCE,
    add_command,
    add_group,
    argument,
    clients_of,
    expiry_option,
    identity_arguments,
    identity_of,
    positive,
)
from rebar.aws.cost import EBS_GB_MONTH
from rebar.aws.create_snapshot import create_snapshot
from rebar.aws.instances import Machine, this_machine
from rebar.aws.mount import KINDS, detach_unmounted, mount_volume, unmount_volume
from rebar.aws.plan import mode_of
from rebar.aws.snapshots import as_table, delete_volume, find_snapshots, get_snapshot
from rebar.aws.tags import PROJECT
from rebar.aws.verify_snapshot import restore_snapshot, verify_snapshot
from rebar.aws.volumes import (
    Volume,
    attach_volume,
    attachment,
    create_volume,
    describe_instance,
    get_volume,
    volume_request,
)

VOLUME = argument("volume", help="vol-…, or RUN/ROLE such as imagenet/beton")
SNAPSHOT = argument("snapshot", help="snap-…, or RUN/ROLE for its newest")
KIND = [
    argument("--zone", required=True, help="availability zone of the instance, such as us-east-1a"),
    argument("--type", default="gp3", choices=sorted(EBS_GB_MONTH), help="default: %(default)s"),
    argument("--throughput", type=positive, help="MiB/s; gp3 only, extra charge above 125"),
]


def add(groups: Any) -> None:
    """Declare the commands."""
    volume = add_group(groups, "volume", "Create, attach, mount and delete EBS volumes.")
    add_command(
        volume,
        "create",
        _create,
        "Create a blank volume. A repeated call finds it.",
        "volume create --run imagenet --role beton --zone us-east-1a --size 200 --yes",
        *identity_arguments("data"),
        EXPIRES,
        *KIND,
        argument("--size", required=True, type=positive, help="GiB"),
        argument("--iops", type=positive, help="gp3 only, extra charge above 3000"),
        argument("--encrypted", action="store_true", help="encrypt it (default: the account's setting)"),
    )
    add_command(
        volume,
        "attach",
        _attach,
        "Attach an available volume to a running instance in its zone.",
        "volume attach imagenet/beton --yes",
        VOLUME,
        INSTANCE,
    )
    add_command(
        volume,
        "mount",
        _mount,
        "Mount a volume attached to this machine (as root).",
        "volume mount imagenet/beton /data --format ext4 --yes",
        VOLUME,
        argument("folder", type=Path, help="empty folder, created if necessary"),
        argument("--format", choices=KINDS, help="make a file system first; only on a blank volume of 'volume create'"),
        argument("--read-only", action="store_true", help="mount read-only, without replaying the journal"),
    )
    for name, run, summary in (
        ("umount", _umount, "Sync and unmount a volume from this machine (as root)."),
        ("detach", _detach, "Detach an unmounted volume, without force."),
        ("delete", _delete, "Delete a volume whose content is in a verified snapshot."),
    ):
        add_command(volume, name, run, summary, f"volume {name} imagenet/beton --yes", VOLUME)

    snapshot = add_group(groups, "snapshot", "Create, verify and restore snapshots with checksums.")
    add_command(
        snapshot,
        "create",
        _create_snapshot,
        "Store checksums of all files, unmount, create a snapshot, and wait until it is completed (as root).",
        "snapshot create imagenet/beton --yes",
        VOLUME,
        argument(
            "--keep-mounted",
            action="store_true",
            help="freeze instead of unmounting; such a snapshot does not permit deleting the volume",
        ),
    )
    add_command(snapshot, "list", _list, "List the project's snapshots, newest first.", "snapshot list", changes=False)
    add_command(
        snapshot,
        "restore",
        _restore,
        "Create a volume from a snapshot. A repeated call finds it.",
        "snapshot restore imagenet/beton --zone us-east-1b --expires-days 2 --yes",
        SNAPSHOT,
        *KIND,
        argument("--run", dest="run_name", metavar="NAME", help="default: the snapshot's"),
        argument("--role", help="default: the snapshot's"),
        argument("--size", type=positive, help="GiB (default and minimum: the snapshot's)"),
        EXPIRES,
    )
    add_command(
        snapshot,
        "verify",
        _verify,
        "Restore a snapshot to a temporary volume on this machine and compare every file (as root).",
        "snapshot verify imagenet/beton --yes",
        SNAPSHOT,
        INSTANCE,
        argument("--again", action="store_true", help="verify it even if it was verified before"),
    )


def _volume(options: argparse.Namespace) -> Volume:
    return get_volume(clients_of(options), options.volume, options.project)


def _create(options: argparse.Namespace) -> None:
    identity = identity_of(options)
    more = {"Throughput": options.throughput, "Iops": options.iops, "Encrypted": options.encrypted or None}
    request = volume_request(identity, options.zone, options.size, options.type, **more)
    create_volume(clients_of(options), identity, request, mode_of(options))


def _attach(options: argparse.Namespace) -> None:
    instance = options.instance or this_machine().instance_id
    attach_volume(clients_of(options), _volume(options), instance, mode_of(options))


def _mount(options: argparse.Namespace) -> None:
    more = {"kind": options.format, "read_only": options.read_only}
    mount_volume(clients_of(options), _volume(options), options.folder, mode_of(options), **more)


def _umount(options: argparse.Namespace) -> None:
    unmount_volume(_volume(options), mode_of(options))


def _detach(options: argparse.Namespace) -> None:
    clients, volume = clients_of(options), _volume(options)
    where = attachment(volume)
    state = describe_instance(clients, where["InstanceId"])["State"]["Name"] if where else ""
    detach_unmounted(clients, volume, mode_of(options), instance_is_down=state in ("stopped", "terminated"))


def _delete(options: argparse.Namespace) -> None:
    delete_volume(clients_of(options), _volume(options), mode_of(options))


def _create_snapshot(options: argparse.Namespace) -> None:
    create_snapshot(clients_of(options), _volume(options), mode_of(options), keep_mounted=options.keep_mounted)


def _list(options: argparse.Namespace) -> None:
    print(as_table(find_snapshots(clients_of(options), {PROJECT: options.project})))


def _restore(options: argparse.Namespace) -> None:
    clients = clients_of(options)
    restore_snapshot(
        clients,
        get_snapshot(clients, options.snapshot, options.project),
        mode_of(options),
        zone=options.zone,
        run=options.run_name,
        role=options.role,
        size=options.size,
        kind=options.type,
        throughput=options.throughput,
        expires=expiry_option(options),
    )


def _verify(options: argparse.Namespace) -> None:
    clients = clients_of(options)
    if options.instance:
        zone = describe_instance(clients, options.instance)["Placement"]["AvailabilityZone"]
        machine = Machine(options.instance, zone)
    else:
        machine = this_machine()
    snapshot = get_snapshot(clients, options.snapshot, options.project)
    verify_snapshot(clients, snapshot, machine, mode_of(options), again=options.again)
