"""``data disks``: mount the NVMe disks of an EC2 instance (the instance store); several disks become a RAID 0.

The disks are empty when an instance starts, and their content is lost when it stops. Disks that are not blank are
never formatted.
"""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rebar.aws.arguments import argument, command
from rebar.aws.client import Aws, Step, run_program
from rebar.aws.devices import mount, mounts_of, probe, require_blank, require_free_target, size_of
from rebar.storage.boto import AwsError

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
    if device is not None and (places := mounts_of(device)):
        if [place.target for place in places] != [folder]:
            text = f"the instance store is mounted on {places[0].target}. Use that folder, or unmount it first."
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
