"""A file system is made only where nothing is: every test here must pass before mkfs runs."""

import os
import uuid
from pathlib import Path

from rebar.cloud.clients import Clients
from rebar.cloud.devices import SYSFS, size_of
from rebar.cloud.errors import CloudError
from rebar.cloud.mounts import mounts_of
from rebar.cloud.shell import run_program
from rebar.cloud.tags import FILESYSTEM, tags_of
from rebar.cloud.volumes import Volume, set_tags

KINDS = ("ext4", "xfs")
MIB, GIB = 2**20, 2**30
BLANK = "blank"


def probe(device: Path) -> dict[str, str]:
    """What blkid finds on a device, such as ``TYPE`` and ``UUID``; empty where it finds nothing.

    Raises CloudError where it finds several things at once.
    """
    done = run_program("blkid", "--probe", "--output", "export", str(device), accept=(0, 2))
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def require_formattable(volume: Volume) -> str:
    """The volume's file system tag; raises CloudError unless we created it, and not from a snapshot."""
    volume_id = volume["VolumeId"]
    if volume.get("SnapshotId"):
        raise CloudError(f"{volume_id} was restored from {volume['SnapshotId']}: it is never formatted")
    tag = tags_of(volume).get(FILESYSTEM)
    if tag is None:
        raise CloudError(f"{volume_id} was not created blank by 'volume create': it is never formatted")
    return tag


def require_blank(device: Path, size: int) -> None:
    """Raises CloudError unless the device has ``size`` bytes, is unused, and holds nothing that can be seen."""
    if size_of(device) != size:
        raise CloudError(f"{device} has {size_of(device)} bytes, the volume {size}: not formatted")
    if places := mounts_of(device):
        raise CloudError(f"{device} is mounted on {places[0].target}: not formatted")
    folder = SYSFS / device.name
    users = [*folder.glob("holders/*"), *folder.glob(f"{device.name}*")]
    if users:
        raise CloudError(f"{device} has partitions or is part of {users[0].name}: not formatted")
    if found := probe(device):
        raise CloudError(f"{device} holds {found.get('TYPE') or found.get('PTTYPE') or 'something'}: not formatted")
    try:
        handle = os.open(device, os.O_RDONLY | os.O_EXCL)
    except OSError as error:
        raise CloudError(f"{device} is in use ({error.strerror}): not formatted") from None
    try:
        for start in (0, size - MIB):
            if any(os.pread(handle, MIB, start)):
                raise CloudError(f"{device} is not blank: there are bytes in the MiB at {start}: not formatted")
    finally:
        os.close(handle)


def format_volume(clients: Clients, volume: Volume, device: Path, kind: str) -> None:
    """Make a file system on a blank volume that ``volume create`` made; finishes what was interrupted.

    The UUID is chosen and noted in a tag before anything is written, so that a repeated command knows its own work.
    """
    tag, size = require_formattable(volume), volume["Size"] * GIB
    volume_id = volume["VolumeId"]
    if tag == BLANK:
        require_blank(device, size)
        tag = f"{kind} {uuid.uuid4()}"
        set_tags(clients, volume_id, {FILESYSTEM: tag})
    chosen, _, identifier = tag.partition(" ")
    if chosen != kind:
        raise CloudError(f"{volume_id} was formatted, or begun to be, as {chosen}: give --format {chosen}")
    found = probe(device)
    if found.get("TYPE") == kind and found.get("UUID") == identifier:
        _check(device, kind)
        return
    require_blank(device, size)
    print(f"making {kind} on {device}", flush=True)
    _make(device, kind, identifier)
    _check(device, kind)


def _make(device: Path, kind: str, identifier: str) -> None:
    if kind == "ext4":
        run_program("mkfs.ext4", "-q", "-m", "0", "-U", identifier, str(device))
    else:
        run_program("mkfs.xfs", "-q", "-m", f"uuid={identifier}", str(device))
    run_program("blockdev", "--flushbufs", str(device))


def _check(device: Path, kind: str) -> None:
    """Raises CloudError where a new file system is not whole."""
    if mounts_of(device):
        return  # it mounted: it is
    if kind == "ext4":
        run_program("e2fsck", "-n", str(device))
    else:
        run_program("xfs_repair", "-n", str(device))
