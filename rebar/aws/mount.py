"""``volume mount|umount|detach`` for EBS volumes, ``data disks`` for the NVMe disks of an instance (instance store).

Only blank volumes that ``volume create`` made, and blank disks, are formatted. The content of the instance store is
lost when the instance stops; several disks become a RAID 0.
"""

import os
import uuid
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rebar.aws.commands import Aws, Step, argument, command, run_program
from rebar.aws.devices import (
    device_of,
    link_of,
    mount,
    mount_of,
    mounts_of,
    probe,
    require_blank,
    require_free_target,
    size_of,
    unmount,
)
from rebar.aws.tags import FILESYSTEM, Resource, describe, set_tags, tags_of
from rebar.aws.volumes import VOLUME, attachment, detach_volume, get_volume, require_attached
from rebar.storage.aws import AwsError

KINDS = ("ext4", "xfs")
OPTIONS = {"ext4": "noatime", "xfs": "noatime,nouuid"}  # a restored copy has the UUID of its original
READ_ONLY = {"ext4": "ro,noload", "xfs": "ro,norecovery,nouuid"}  # the journal is not replayed
GIB = 2**30
BLANK = "blank"


def require_formattable(volume: Resource) -> str:
    """Return a volume's file system tag. Raises AwsError unless ``volume create`` made it, without a snapshot."""
    tag = tags_of(volume).get(FILESYSTEM)
    if volume.get("SnapshotId") or tag is None:
        origin = f"was restored from {volume['SnapshotId']}" if volume.get("SnapshotId") else "has no creation tag"
        text = f"{volume['VolumeId']} {origin}. Only blank volumes made by 'volume create' are formatted."
        raise AwsError(text, code="volume-not-blank")
    return tag


def format_volume(aws: Aws, volume: Resource, device: Path, kind: str) -> None:
    """Make a file system on a blank volume, or complete an interrupted call.

    The UUID is stored in a tag before anything is written, so that a repeated command recognizes its own file system.
    """
    tag, size = require_formattable(volume), volume["Size"] * GIB
    if tag == BLANK:
        require_blank(device, size)
        tag = f"{kind} {uuid.uuid4()}"
        set_tags(aws, volume["VolumeId"], filesystem=tag)
    chosen, _, identifier = tag.partition(" ")
    if chosen != kind:
        text = f"{volume['VolumeId']} is formatted as {chosen}, or was about to be. Use --format {chosen}."
        raise AwsError(text, code="volume-filesystem")
    found = probe(device)
    if (found.get("TYPE"), found.get("UUID")) != (kind, identifier):
        require_blank(device, size)
        print(f"making {kind} on {device}", flush=True)
        if kind == "ext4":
            run_program("mkfs.ext4", "-q", "-m", "0", "-U", identifier, str(device))
        else:
            run_program("mkfs.xfs", "-q", "-m", f"uuid={identifier}", str(device))
        run_program("blockdev", "--flushbufs", str(device))
    run_program("e2fsck" if kind == "ext4" else "xfs_repair", "-n", str(device))


@command(
    "volume mount",
    "imagenet/beton /data --format ext4 --yes",
    VOLUME,
    argument("folder", type=Path, help="empty folder, created if necessary"),
    argument("--format", choices=KINDS, help="make a file system first; only on a blank volume of 'volume create'"),
    argument("--read-only", action="store_true", help="mount read-only, without replaying the journal"),
)
def _mount(aws: Aws, options: Namespace) -> None:
    """Mount a volume attached to this machine (as root)."""
    volume, kind, read_only = get_volume(aws, options.volume), options.format, options.read_only
    volume_id = volume["VolumeId"]
    require_attached(volume)
    device, target = device_of(volume_id), options.folder.absolute()
    mounted = mount_of(device)
    access = "read-only" if read_only else "read-write"
    if mounted is not None:
        if mounted.target != target or mounted.writable == read_only:
            how = "read-write" if mounted.writable else "read-only"
            text = f"{volume_id} is already mounted on {mounted.target}, {how}. Unmount it first (volume umount)."
            raise AwsError(text, code="mount-conflict")
        print(f"{volume_id} is already mounted on {target}")
        return
    require_free_target(target)
    found = probe(device).get("TYPE")
    steps = []
    if kind is not None:
        require_formattable(volume)
        if found is None:
            steps.append(Step(f"make {kind} on {device}, after checking that it is blank"))
    elif found not in KINDS:
        text = f"{volume_id} contains {found or 'no file system'}, not {' or '.join(KINDS)}"
        raise AwsError(f"{text}. Use --format ext4 if it was created blank.", code="volume-filesystem")
    steps.append(Step(f"mount {device} on {target}, {access}"))
    if aws.confirm(f"volume {volume_id}", steps):
        if kind is not None:
            format_volume(aws, volume, device, kind)
        mount_device(aws, volume_id, device, target, read_only=read_only)
        print(f"{volume_id} is mounted on {target}")


def mount_device(aws: Aws, volume_id: str, device: Path, target: Path, *, read_only: bool) -> None:
    """Mount a volume's device. A new tag marks earlier snapshots as outdated before the volume becomes writable."""
    kind = probe(device).get("TYPE", "")
    if kind not in KINDS:
        text = f"{device} contains {kind or 'no file system'}, not {' or '.join(KINDS)}."
        raise AwsError(text, code="volume-filesystem")
    if not read_only:
        set_tags(aws, volume_id, last_mount=str(uuid.uuid4()))
    mount(device, target, kind, options=READ_ONLY[kind] if read_only else OPTIONS[kind])


@command("volume umount", "imagenet/beton --yes", VOLUME)
def _unmount(aws: Aws, options: Namespace) -> None:
    """Sync and unmount a volume from this machine (as root)."""
    unmount_volume(aws, get_volume(aws, options.volume))


def unmount_volume(aws: Aws, volume: Resource) -> None:
    """Unmount a volume from all its mount points on this machine."""
    volume_id = volume["VolumeId"]
    mounts = mounts_of(device_of(volume_id, seconds=0)) if link_of(volume_id).exists() else []
    if not mounts:
        print(f"{volume_id} is not mounted on this machine")
    elif aws.confirm(f"volume {volume_id}", [Step(f"sync and unmount {each.target}") for each in mounts]):
        for each in mounts:
            unmount(each.target)
            print(f"unmounted {each.target}")


@command("volume detach", "imagenet/beton --yes", VOLUME)
def _detach(aws: Aws, options: Namespace) -> None:
    """Detach an unmounted volume, without force."""
    volume = get_volume(aws, options.volume)
    volume_id, attached = volume["VolumeId"], attachment(volume)
    instance = describe(aws, "instance", attached["InstanceId"]) if attached else None
    is_down = instance is None or instance["State"]["Name"] in ("stopped", "terminated")
    if attached is not None and not is_down:
        if not link_of(volume_id).exists():  # the mounts of another machine are not visible here
            text = f"{volume_id} is attached to another running instance. Detach it there, or stop that instance."
            raise AwsError(text, code="volume-in-use")
        if mounts := mounts_of(device_of(volume_id, seconds=0)):
            text = f"{volume_id} is mounted on {mounts[0].target}. Run volume umount {volume_id} first."
            raise AwsError(text, code="volume-in-use")
    detach_volume(aws, volume)


# ------------------------------------------------------------------------------------------ instance store

MODEL = "Amazon EC2 NVMe Instance Storage"
BLOCKS, DEVICES, HOLDERS = Path("/sys/block"), Path("/dev"), Path("/sys/class/block")
NAME = "rebar"
"""The name of the array and the label of the file system, which identify both after a reboot."""
ARRAY = Path("/dev/md") / NAME
MEMBER = "linux_raid_member"


def find_disks() -> list[Path]:
    """Return the disks of the instance store, identified by their model name."""
    found = []
    for entry in sorted(BLOCKS.glob("nvme*")):
        model = entry / "device" / "model"
        if model.is_file() and model.read_text().strip() == MODEL:
            found.append((DEVICES / entry.name).resolve())
    return found


@command(
    "data disks",
    "/nvme --yes",
    argument("folder", type=Path, help="an empty folder; created if it does not exist"),
)
def _mount_disks(aws: Aws, options: Namespace) -> None:
    """Mount the instance store (NVMe) as root, several disks as RAID 0. Never formats disks that contain data."""
    folder, disks = options.folder.absolute(), find_disks()
    if not disks:
        print(f"this instance has no instance store: {folder} is an ordinary folder")
        if aws.executes:
            folder.mkdir(parents=True, exist_ok=True)
        return
    is_array = _is_rebar_array(disks)
    device = _assembled_array(disks) if is_array else _rebar_disk(disks)
    if device is not None and (mounts := mounts_of(device)):
        if [each.target for each in mounts] != [folder]:
            text = f"the instance store is mounted on {mounts[0].target}. Use that folder, or unmount it first."
            raise AwsError(text, code="mount-conflict")
        print(f"{folder} is already on the instance store")
        return
    require_free_target(folder)
    names, size = " ".join(disk.name for disk in disks), sum(map(size_of, disks)) / 1e9
    steps = []
    if device is None and is_array:
        steps.append(Step(f"assemble the RAID 0 of {names}"))
    elif device is None:
        for disk in disks:
            require_blank(disk, size_of(disk))
        if len(disks) > 1:
            steps.append(Step(f"create a RAID 0 of {names}, {size:,.0f} GB"))
        steps.append(Step(f"make ext4 on {'it' if len(disks) > 1 else names}, which is blank"))
    steps.append(Step(f"mount it on {folder}; its content is lost when the instance stops"))
    if not aws.confirm(f"instance store of {len(disks)} disks", steps):
        return
    if device is None:
        device = disks[0] if len(disks) == 1 else _start_array(disks, create=not is_array)
    if not probe(device):  # new, or created by a call that was killed before mkfs
        require_blank(device, size_of(device))
        run_program("mkfs.ext4", "-q", "-m", "0", "-L", NAME, str(device))
    mount(device, folder, "ext4", options="noatime")
    print(f"{folder} is on {device}: {size:,.0f} GB")


def _rebar_disk(disks: Sequence[Path]) -> Path | None:
    """Return the disk if there is only one and it has Rebar's file system."""
    found = probe(disks[0]) if len(disks) == 1 else {}
    return disks[0] if (found.get("TYPE"), found.get("LABEL")) == ("ext4", NAME) else None


def _is_rebar_array(disks: Sequence[Path]) -> bool:
    """Return whether all disks are members of Rebar's array. Raises AwsError if only some are."""
    members = [found for disk in disks if (found := probe(disk)).get("TYPE") == MEMBER]
    uuids = {found.get("UUID") for found in members if found.get("LABEL", "").rpartition(":")[2] == NAME}
    if members and (len(members) < len(disks) or len(uuids) != 1 or None in uuids):
        text = "the instance store belongs to another array, or disks of it are missing. If its content is not needed"
        raise AwsError(
            f"{text}, run mdadm --stop, then mdadm --zero-superblock on each disk.", code="instance-store-in-use"
        )
    return bool(members)


def _assembled_array(disks: Sequence[Path]) -> Path | None:
    """Return the device of Rebar's array; None if it is not assembled."""
    users = [{holder.name for holder in (HOLDERS / disk.name / "holders").glob("*")} for disk in disks]
    holders = set().union(*users)
    if len(holders) > 1 or (holders and not all(users)):
        text = f"the disks of the instance store are used by {', '.join(sorted(holders))}. Stop these arrays first."
        raise AwsError(text, code="instance-store-in-use")
    return (DEVICES / holders.pop()).resolve() if holders else None


def _start_array(disks: Sequence[Path], *, create: bool) -> Path:
    """Create or assemble the array. Returns its device once udev has created the link."""
    options = ["--run", "--level=0", f"--name={NAME}", "--homehost=any", f"--raid-devices={len(disks)}"]
    start = ["--create", str(ARRAY), *options] if create else ["--assemble", str(ARRAY)]
    run_program("mdadm", *start, *map(str, disks))
    if not ARRAY.exists():
        run_program("udevadm", "settle", "--timeout=30")
    if not ARRAY.exists():
        raise AwsError(f"mdadm succeeded, but {ARRAY} does not exist. Check /proc/mdstat.", code="program-failed")
    return Path(os.path.realpath(ARRAY))
