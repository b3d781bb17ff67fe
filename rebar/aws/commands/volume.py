"""``volume create|attach|mount|umount|detach|delete``."""

import argparse
from pathlib import Path
from typing import Any

from rebar.aws.attach import attach_volume, describe_instance
from rebar.aws.client import Clients
from rebar.aws.commands.parsers import (
    add_command,
    add_group,
    add_identity,
    add_volume_kind,
    clients_of,
    identity_of,
    instance_id,
    positive,
)
from rebar.aws.filesystem import KINDS, detach_unmounted, mount_volume, unmount_volume
from rebar.aws.instances import this_machine
from rebar.aws.plan import mode_of
from rebar.aws.snapshots import delete_volume
from rebar.aws.volumes import NewVolume, Volume, attachment, create_volume, get_volume

VOLUME = "vol-…, or RUN/ROLE such as imagenet/beton"


def add(groups: Any) -> None:
    """Declare the commands."""
    group = add_group(groups, "volume", "The life of an EBS volume.")

    create = add_command(
        group,
        "create",
        _create,
        "Create a blank volume; run again, it finds the same one.",
        "volume create --run imagenet --role beton --zone us-east-1a --size 200 --yes",
    )
    add_identity(create, "data")
    add_volume_kind(create)
    create.add_argument("--size", required=True, type=positive, help="GiB")
    create.add_argument("--iops", type=positive, help="gp3 only, beyond 3000 it costs more")
    create.add_argument("--encrypted", action="store_true", help="even where the account's default is not to")

    attach = add_command(
        group,
        "attach",
        _attach,
        "Attach an available volume to a running machine in its zone.",
        "volume attach imagenet/beton --yes",
    )
    _add_volume(attach)
    _add_instance(attach)

    mount = add_command(
        group,
        "mount",
        _mount,
        "Mount a volume attached to this machine; as root.",
        "volume mount imagenet/beton /data --format ext4 --yes",
    )
    _add_volume(mount)
    mount.add_argument("folder", type=Path, help="an empty folder, made where it is missing")
    mount.add_argument(
        "--format", choices=KINDS, help="make a file system first; only on a blank volume that 'volume create' made"
    )
    mount.add_argument("--read-only", action="store_true", help="write nothing, not even the journal")

    umount = add_command(
        group,
        "umount",
        _umount,
        "Write everything out and unmount a volume from this machine; as root.",
        "volume umount imagenet/beton --yes",
    )
    _add_volume(umount)

    detach = add_command(
        group,
        "detach",
        _detach,
        "Detach an unmounted volume, never by force.",
        "volume detach imagenet/beton --yes",
    )
    _add_volume(detach)

    delete = add_command(
        group,
        "delete",
        _delete,
        "Delete a volume whose content a verified snapshot holds.",
        "volume delete imagenet/beton --yes",
    )
    _add_volume(delete)


def _add_volume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", help=VOLUME)


def _add_instance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--instance", type=instance_id, metavar="i-…", help="default: this machine")


def _create(options: argparse.Namespace) -> None:
    new = NewVolume(
        identity_of(options),
        options.zone,
        options.size,
        options.type,
        throughput=options.throughput,
        iops=options.iops,
        encrypted=True if options.encrypted else None,
    )
    create_volume(clients_of(options), new, mode_of(options))


def _attach(options: argparse.Namespace) -> None:
    instance = options.instance or this_machine().instance_id
    attach_volume(clients_of(options), options.volume, options.project, instance, mode_of(options))


def _mount(options: argparse.Namespace) -> None:
    clients, volume = _found(options)
    mount_volume(clients, volume, options.folder, mode_of(options), kind=options.format, read_only=options.read_only)


def _umount(options: argparse.Namespace) -> None:
    _, volume = _found(options)
    unmount_volume(volume, mode_of(options))


def _detach(options: argparse.Namespace) -> None:
    clients, volume = _found(options)
    where = attachment(volume)
    state = describe_instance(clients, where["InstanceId"])["State"]["Name"] if where is not None else "none"
    detach_unmounted(clients, volume, mode_of(options), instance_is_down=state in ("stopped", "terminated"))


def _delete(options: argparse.Namespace) -> None:
    clients, volume = _found(options)
    delete_volume(clients, volume, mode_of(options))


def _found(options: argparse.Namespace) -> tuple[Clients, Volume]:
    clients = clients_of(options)
    return clients, get_volume(clients, options.volume, options.project)
