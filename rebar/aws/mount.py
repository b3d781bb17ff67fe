"""What is mounted where, and mounting."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from rebar.aws.client import AwsError, run_program

OPTIONS = {"ext4": "noatime", "xfs": "noatime,nouuid"}  # a restored copy has its original's UUID
PURE_READING = {"ext4": "ro,noload", "xfs": "ro,norecovery,nouuid"}
"""Not even the journal is replayed: the device is not written to."""


@dataclass(frozen=True)
class Mount:
    """A file system that is mounted."""

    target: Path
    kind: str
    writable: bool


def mounts_of(device: Path) -> list[Mount]:
    """Where a block device is mounted."""
    number = os.stat(device).st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == wanted:
            kind, _, super_options = words[words.index("-") + 1 :][:3]
            writable = "rw" in words[5].split(",") and "rw" in super_options.split(",")
            found.append(Mount(Path(_unescaped(words[4])), kind, writable))
    return found


def only_mount_of(device: Path) -> Mount | None:
    """The one place a device is mounted; raises AwsError where there are several."""
    found = mounts_of(device)
    if len(found) > 1:
        places = ", ".join(str(mount.target) for mount in found)
        raise AwsError(f"{device} is mounted in {len(found)} places ({places}): unmount all but one")
    return found[0] if found else None


def require_free_target(target: Path) -> None:
    """Raises AwsError where something is mounted at, or lies in, a folder."""
    if os.path.ismount(target):
        raise AwsError(f"{target} has something else mounted on it: unmount that, or choose another folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AwsError(f"{target} is not an empty folder: choose another")


def mount(device: Path, target: Path, kind: str, *, options: str) -> None:
    """Mount a device on an empty folder, which is made where it is missing."""
    require_free_target(target)
    target.mkdir(parents=True, exist_ok=True)
    run_program("mount", "-t", kind, "-o", options, str(device), str(target))


def unmount(target: Path) -> None:
    """Write everything out and unmount; raises AwsError where files are open."""
    run_program("sync", "--file-system", str(target))
    run_program("umount", str(target))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
