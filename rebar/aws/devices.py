"""Find, check, mount and freeze the block devices of volumes on this machine."""

import os
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rebar.aws.commands import run_program
from rebar.cli import warn
from rebar.storage.aws import AwsError

BY_ID = Path("/dev/disk/by-id")
SYSFS = Path("/sys/class/block")
LINK_PREFIX = "nvme-Amazon_Elastic_Block_Store_"
UDEV_SECONDS = 60.0
MIB = 2**20


def link_of(volume_id: str) -> Path:
    """Return the link that udev creates for a volume."""
    return BY_ID / (LINK_PREFIX + volume_id.replace("-", ""))


def device_of(volume_id: str, *, seconds: float | None = None) -> Path:
    """Return the block device of an attached volume. Waits up to ``seconds`` (UDEV_SECONDS) for udev's link.

    Raises AwsError if there is no such device, or if the serial number of the device differs.
    """
    link = link_of(volume_id)
    deadline = time.monotonic() + (UDEV_SECONDS if seconds is None else seconds)
    while not link.exists():
        if time.monotonic() > deadline:
            text = f"{volume_id} is not on this machine: {link} does not exist. Attach it (volume attach)"
            raise AwsError(
                f"{text}; instances before Nitro, such as p3, are not supported.", code="volume-not-attached"
            )
        time.sleep(0.2)
    device = link.resolve()
    if not stat.S_ISBLK(device.stat().st_mode):
        raise AwsError(f"{link} points to {device}, which is not a block device.", code="volume-device-wrong")
    serial = SYSFS / device.name / "device" / "serial"
    if serial.exists() and (found := serial.read_text().strip()) != volume_id.replace("-", ""):
        text = f"{link} points to {device}, whose serial number is {found}. Run udevadm trigger, then try again."
        raise AwsError(text, code="volume-device-wrong")
    return device


def size_of(device: Path) -> int:
    """Return the size of a block device in bytes."""
    with device.open("rb") as file:
        return file.seek(0, os.SEEK_END)


def probe(device: Path) -> dict[str, str]:
    """Return blkid's values for a device, such as ``TYPE`` and ``UUID``. Empty if it recognizes nothing.

    Raises AwsError if blkid finds several file systems at once.
    """
    done = run_program("blkid", "--probe", "--output", "export", str(device), accept=(0, 2))
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def require_blank(device: Path, size: int) -> None:
    """Raise AwsError unless a device has ``size`` bytes, is unused, and its first and last MiB are zero."""

    def refuse(reason: str) -> AwsError:
        return AwsError(f"{device} {reason}. It is not formatted.", code="volume-not-blank")

    if size_of(device) != size:
        raise refuse(f"has {size_of(device)} bytes instead of {size}")
    if mounts := mounts_of(device):
        raise refuse(f"is mounted on {mounts[0].target}")
    folder = SYSFS / device.name
    if users := [*folder.glob("holders/*"), *folder.glob(f"{device.name}*")]:
        raise refuse(f"has partitions or is part of {users[0].name}")
    if found := probe(device):
        raise refuse(f"contains {found.get('TYPE') or found.get('PTTYPE') or 'data'}")
    try:
        handle = os.open(device, os.O_RDONLY | os.O_EXCL)
    except OSError as error:
        raise refuse(f"is in use ({error.strerror})") from None
    try:
        for start in (0, size - MIB):
            if any(os.pread(handle, MIB, start)):
                raise refuse(f"is not blank: the MiB at byte {start} contains data")
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Mount:
    """A mounted file system."""

    target: Path
    writable: bool


def mounts_of(device: Path) -> list[Mount]:
    """Return the mounts of a block device."""
    number = os.stat(device).st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == wanted:
            super_options = words[words.index("-") + 3]
            target = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
            found.append(Mount(Path(target), "rw" in words[5].split(",") and "rw" in super_options.split(",")))
    return found


def mount_of(device: Path) -> Mount | None:
    """Return the mount of a device, or None. Raises AwsError if it is mounted more than once."""
    found = mounts_of(device)
    if len(found) > 1:
        targets = ", ".join(str(mount.target) for mount in found)
        text = f"{device} is mounted in {len(found)} places ({targets}). Unmount all but one."
        raise AwsError(text, code="mount-conflict")
    return found[0] if found else None


def require_free_target(target: Path) -> None:
    """Raise AwsError if a folder is a mount point, or is not empty."""
    if os.path.ismount(target):
        raise AwsError(f"{target} is a mount point already. Unmount it, or use another folder.", code="mount-conflict")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AwsError(f"{target} is not an empty folder. Use another.", code="mount-conflict")


def mount(device: Path, target: Path, kind: str, *, options: str) -> None:
    """Mount a device on an empty folder, creating the folder if necessary."""
    require_free_target(target)
    target.mkdir(parents=True, exist_ok=True)
    run_program("mount", "-t", kind, "-o", options, str(device), str(target))


def unmount(target: Path) -> None:
    """Sync and unmount a file system. Raises AwsError if files are open."""
    run_program("sync", "--file-system", str(target))
    run_program("umount", str(target))


FREEZE_SECONDS = 300

# Thaws when its standard input closes, which happens in any case when this process ends.
THAW = 'timeout "$2" cat >/dev/null; exec fsfreeze --unfreeze "$1"'


@contextmanager
def frozen(target: Path) -> Iterator[None]:
    """Freeze a mounted file system in the block. A second process thaws it, even if this one is killed.

    Raises AwsError if freezing fails, or if the block took longer than FREEZE_SECONDS.
    """
    thawing = subprocess.Popen(
        ["sh", "-c", THAW, "thaw", str(target), str(FREEZE_SECONDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        start_new_session=True,  # so that Ctrl-C does not reach it
    )
    try:
        run_program("fsfreeze", "--freeze", str(target))
    except BaseException:
        thawing.communicate()
        raise
    overdue = False
    try:
        yield
        overdue = thawing.poll() is not None
    finally:
        message = thawing.communicate()[1].strip()
        if thawing.returncode:
            warn(f"{target} could not be thawed ({message}). Run fsfreeze --unfreeze {target}.")
    if overdue:
        text = f"{target} was thawed after {FREEZE_SECONDS} s, before the snapshot started. Try again."
        raise AwsError(text, code="snapshot-files-changed")
