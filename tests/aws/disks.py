"""Real block devices for moto's volumes: a sparse file each, with a loop device while attached.

Attaching creates the link with the volume's serial number that udev creates on EC2. A snapshot copies the disk:
as on EBS, unwritten data of a mounted file system are missing.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.aws.strict_aws import first

BY_ID = Path("/dev/disk/by-id")
GIB = 2**30


def missing() -> str:
    """Return why loop devices cannot be used here; empty if they can."""
    if os.geteuid() != 0:
        return "not root"
    for program in ("losetup", "mkfs.ext4", "e2fsck", "blkid", "fsfreeze", "mount"):
        if shutil.which(program) is None:
            return f"no {program}"
    found = subprocess.run(["losetup", "--find"], capture_output=True, text=True)
    return "" if found.returncode == 0 else f"no loop devices: {found.stderr.strip()}"


class Disks:
    """Apply successful API calls to files and loop devices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loops: dict[str, str] = {}
        BY_ID.mkdir(parents=True, exist_ok=True)

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.raw"

    def link(self, volume_id: str) -> Path:
        return BY_ID / ("nvme-Amazon_Elastic_Block_Store_" + volume_id.replace("-", ""))

    def after(self, action: str, parameters: dict[str, str], answer: bytes) -> None:
        if action == "CreateVolume":
            volume = self.file(first(answer, "volumeId"))
            if parameters.get("SnapshotId"):
                self._copy(self.file(parameters["SnapshotId"]), volume)
            else:
                volume.touch()
            os.truncate(volume, int(parameters["Size"]) * GIB)
        elif action == "CreateSnapshot":
            self._copy(self.file(parameters["VolumeId"]), self.file(first(answer, "snapshotId")))
        elif action == "AttachVolume":
            self._attach(parameters["VolumeId"])
        elif action == "DetachVolume":
            self._detach(parameters["VolumeId"])
        elif action == "DeleteVolume":
            self.file(parameters["VolumeId"]).unlink()

    def _copy(self, source: Path, target: Path) -> None:
        subprocess.run(["cp", "--sparse=always", source, target], check=True)

    def _attach(self, volume_id: str) -> None:
        loop = _output("losetup", "--find", "--show", str(self.file(volume_id)))
        self.loops[volume_id] = loop
        self.link(volume_id).symlink_to(loop)

    def _detach(self, volume_id: str) -> None:
        loop = self.loops.pop(volume_id)
        assert not mounted_at(loop), f"{volume_id} was detached while it was mounted"
        self.link(volume_id).unlink()
        subprocess.run(["losetup", "--detach", loop], check=True)

    def close(self) -> None:
        """Thaw, unmount and remove everything."""
        for volume_id in list(self.loops):
            for target in mounted_at(self.loops[volume_id]):
                subprocess.run(["fsfreeze", "--unfreeze", target], capture_output=True)
                subprocess.run(["umount", target], check=True)
            self._detach(volume_id)


def mounted_at(device: str) -> list[str]:
    """Return the mount points of a device."""
    done = subprocess.run(["findmnt", "--noheadings", "--output=TARGET", device], capture_output=True, text=True)
    return done.stdout.split()


def _output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def fill(folder: Path) -> None:
    (folder / "train").mkdir(exist_ok=True)
    for number in range(12):
        (folder / "train" / f"{number:02}.bin").write_bytes(os.urandom(50_000 + number))
    (folder / "val.beton").write_bytes(os.urandom(3 * 2**20))
    (folder / "latest").symlink_to("val.beton")


def checksums(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and "lost+found" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def position_in(disk: Path, content: bytes) -> int | None:
    """Return the offset of some bytes on a disk. Skips holes."""
    handle, start = os.open(disk, os.O_RDONLY), 0
    try:
        while True:
            start = os.lseek(handle, start, os.SEEK_DATA)
            end = os.lseek(handle, start, os.SEEK_HOLE)
            found = os.pread(handle, end - start, start).find(content)
            if found >= 0:
                return start + found
            start = end
    except OSError:  # no more data
        return None
    finally:
        os.close(handle)


def damage(disk: Path, content: bytes) -> None:
    """Overwrite the first block of a file with zeros."""
    position = position_in(disk, content[:4096])
    assert position is not None
    with disk.open("r+b") as file:
        file.seek(position)
        file.write(bytes(4096))
