"""Which block device is a volume: known by the volume's serial number, never guessed from a name."""

import os
import stat
import time
from pathlib import Path

from rebar.cloud.errors import CloudError

BY_ID = Path("/dev/disk/by-id")
SYSFS = Path("/sys/class/block")
PREFIX = "nvme-Amazon_Elastic_Block_Store_"
UDEV_SECONDS = 60.0


def link_of(volume_id: str) -> Path:
    """The link that udev makes for a volume."""
    return BY_ID / (PREFIX + volume_id.replace("-", ""))


def is_here(volume_id: str) -> bool:
    """Whether this machine has the volume's device."""
    return link_of(volume_id).exists()


def device_of(volume_id: str, *, seconds: float | None = None) -> Path:
    """The block device of a volume attached to this machine; waits for udev to make its link.

    Raises CloudError where there is none, or where the device's own serial number says otherwise.
    """
    link = link_of(volume_id)
    deadline = time.monotonic() + (UDEV_SECONDS if seconds is None else seconds)
    while not link.exists():
        if time.monotonic() > deadline:
            raise CloudError(
                f"{volume_id} is not on this machine: there is no {link}. Attach it (volume attach); machines older "
                "than Nitro, such as p3, do not tell a volume's serial number and are not supported"
            )
        time.sleep(0.2)
    device = link.resolve()
    if not stat.S_ISBLK(device.stat().st_mode):
        raise CloudError(f"{link} leads to {device}, which is no block device")
    serial = SYSFS / device.name / "device" / "serial"
    if serial.exists() and (told := serial.read_text().strip()) != volume_id.replace("-", ""):
        raise CloudError(f"{link} leads to {device}, but that device says it is {told}: nothing is done")
    return device


def size_of(device: Path) -> int:
    """The size in bytes."""
    handle = os.open(device, os.O_RDONLY)
    try:
        return os.lseek(handle, 0, os.SEEK_END)
    finally:
        os.close(handle)
