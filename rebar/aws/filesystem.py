"""A file system stands still while a snapshot of it is begun, and is always let go.

A file system is made only where nothing is: every test here must pass before mkfs runs.

A volume is mounted on this machine, formatted before only if it is blank and ours.
"""

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rebar.aws.attach import SYSFS, detach_volume, device_of, is_here, size_of
from rebar.aws.client import AwsError, Clients, run_program
from rebar.aws.mount import OPTIONS, PURE_READING, mount, mounts_of, only_mount_of, require_free_target, unmount
from rebar.aws.plan import Mode, Step, confirm_plan
from rebar.aws.snapshots import SECOND, aws_time
from rebar.aws.tags import FILESYSTEM, LAST_MOUNT, as_text, tags_of
from rebar.aws.volumes import Volume, attachment, require_attached, set_tags
from rebar.cli import warn

LONGEST_SECONDS = 300

# Waits for its standard input to end, which it does however we end, then thaws.
THAW = 'timeout "$2" cat >/dev/null; exec fsfreeze --unfreeze "$1"'


@contextmanager
def frozen(target: Path) -> Iterator[None]:
    """Freeze a mounted file system; another process thaws it afterwards, even if this one is killed.

    Raises AwsError where freezing or thawing fails, or where it took so long that it was thawed meanwhile.
    """
    keeper = subprocess.Popen(
        ["sh", "-c", THAW, "thaw", str(target), str(LONGEST_SECONDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        start_new_session=True,  # Ctrl-C is for us, not for it
    )
    try:
        run_program("fsfreeze", "--freeze", str(target))
    except BaseException:
        keeper.communicate()
        raise
    overdue = False
    try:
        yield
        overdue = keeper.poll() is not None
    finally:
        told = keeper.communicate()[1].strip()
        if keeper.returncode:
            warn(f"{target} could not be thawed ({told}): run fsfreeze --unfreeze {target}")
    if overdue:
        raise AwsError(f"{target} was thawed after {LONGEST_SECONDS} s, before the snapshot was begun: try again")


KINDS = ("ext4", "xfs")
MIB, GIB = 2**20, 2**30
BLANK = "blank"


def probe(device: Path) -> dict[str, str]:
    """What blkid finds on a device, such as ``TYPE`` and ``UUID``; empty where it finds nothing.

    Raises AwsError where it finds several things at once.
    """
    done = run_program("blkid", "--probe", "--output", "export", str(device), accept=(0, 2))
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def require_formattable(volume: Volume) -> str:
    """The volume's file system tag; raises AwsError unless we created it, and not from a snapshot."""
    volume_id = volume["VolumeId"]
    if volume.get("SnapshotId"):
        raise AwsError(f"{volume_id} was restored from {volume['SnapshotId']}: it is never formatted")
    tag = tags_of(volume).get(FILESYSTEM)
    if tag is None:
        raise AwsError(f"{volume_id} was not created blank by 'volume create': it is never formatted")
    return tag


def require_blank(device: Path, size: int) -> None:
    """Raises AwsError unless the device has ``size`` bytes, is unused, and holds nothing that can be seen."""
    if size_of(device) != size:
        raise AwsError(f"{device} has {size_of(device)} bytes, the volume {size}: not formatted")
    if places := mounts_of(device):
        raise AwsError(f"{device} is mounted on {places[0].target}: not formatted")
    folder = SYSFS / device.name
    users = [*folder.glob("holders/*"), *folder.glob(f"{device.name}*")]
    if users:
        raise AwsError(f"{device} has partitions or is part of {users[0].name}: not formatted")
    if found := probe(device):
        raise AwsError(f"{device} holds {found.get('TYPE') or found.get('PTTYPE') or 'something'}: not formatted")
    try:
        handle = os.open(device, os.O_RDONLY | os.O_EXCL)
    except OSError as error:
        raise AwsError(f"{device} is in use ({error.strerror}): not formatted") from None
    try:
        for start in (0, size - MIB):
            if any(os.pread(handle, MIB, start)):
                raise AwsError(f"{device} is not blank: there are bytes in the MiB at {start}: not formatted")
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
        raise AwsError(f"{volume_id} was formatted, or begun to be, as {chosen}: give --format {chosen}")
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
    """Raises AwsError where a new file system is not whole."""
    if mounts_of(device):
        return  # it mounted: it is
    if kind == "ext4":
        run_program("e2fsck", "-n", str(device))
    else:
        run_program("xfs_repair", "-n", str(device))


def mount_volume(
    clients: Clients, volume: Volume, target: Path, mode: Mode, *, kind: str | None = None, read_only: bool = False
) -> None:
    """Mount a volume that is attached to this machine; ``kind``: make this file system first, where all is blank.

    Mounting for writing is noted in a tag before: only snapshots taken later vouch for the volume's content.
    """
    volume_id = volume["VolumeId"]
    require_attached(volume)
    device, target = device_of(volume_id), target.absolute()
    mounted = only_mount_of(device)
    if mounted is not None:
        _require_same_mount(volume_id, mounted.target, target, mounted.writable, read_only)
        print(f"{volume_id} is mounted on {target} already")
        return
    require_free_target(target)
    found = probe(device).get("TYPE")
    steps = []
    if found is None:
        if kind is None:
            raise AwsError(f"{volume_id} holds no file system: --format ext4 makes one, if it was created blank")
        require_formattable(volume)
        steps.append(Step(f"make {kind} on {device}, after checking that all of it is blank"))
    elif found not in KINDS:
        raise AwsError(f"{volume_id} holds {found}, which is not mounted: only {' and '.join(KINDS)} are")
    elif kind is not None:
        require_formattable(volume)  # what an interrupted command began is finished; anything else stops below
    access = "for reading only" if read_only else "for reading and writing"
    steps.append(Step(f"mount {device} on {target}, {access}"))
    if not confirm_plan(mode, f"volume {volume_id}", steps):
        return
    if kind is not None:
        format_volume(clients, volume, device, kind)
    mount_device(clients, volume, device, target, read_only=read_only)
    print(f"{volume_id} is mounted on {target}")


def mount_device(clients: Clients, volume: Volume, device: Path, target: Path, *, read_only: bool) -> None:
    """Mount a volume's device; tags the volume first where it becomes writable."""
    kind = probe(device).get("TYPE", "")
    if kind not in KINDS:
        raise AwsError(f"{device} holds {kind or 'nothing'} that could be mounted")
    if not read_only:
        set_tags(clients, volume["VolumeId"], {LAST_MOUNT: as_text(aws_time(clients) + SECOND)})
    mount(device, target, kind, options=PURE_READING[kind] if read_only else OPTIONS[kind])


def _require_same_mount(volume_id: str, at: Path, target: Path, writable: bool, read_only: bool) -> None:
    if at != target:
        raise AwsError(f"{volume_id} is mounted on {at}: unmount it there first (volume umount {volume_id})")
    if writable == read_only:
        access = "for writing" if writable else "for reading only"
        raise AwsError(f"{volume_id} is mounted on {at} {access}: unmount it first (volume umount {volume_id})")


def unmount_volume(volume: Volume, mode: Mode) -> None:
    """Unmount a volume from wherever on this machine it is mounted."""
    volume_id = volume["VolumeId"]
    places = mounts_of(device_of(volume_id, seconds=0)) if is_here(volume_id) else []
    if not places:
        print(f"{volume_id} is not mounted on this machine")
        return
    steps = [Step(f"write everything out and unmount {place.target}") for place in places]
    if confirm_plan(mode, f"volume {volume_id}", steps):
        for place in places:
            unmount(place.target)
            print(f"unmounted {place.target}")


def detach_unmounted(clients: Clients, volume: Volume, mode: Mode, *, instance_is_down: bool) -> None:
    """Detach a volume that is on this machine and not mounted, or whose machine is stopped.

    Raises AwsError for any other: what another running machine has mounted cannot be seen from here.
    """
    volume_id = volume["VolumeId"]
    if attachment(volume) is not None and not instance_is_down:
        if not is_here(volume_id):
            raise AwsError(
                f"{volume_id} is attached to a running machine that is not this one: unmount and detach it there, "
                "or stop that machine first"
            )
        if places := mounts_of(device_of(volume_id, seconds=0)):
            raise AwsError(f"{volume_id} is mounted on {places[0].target}: volume umount {volume_id} first")
    detach_volume(clients, volume, mode)
