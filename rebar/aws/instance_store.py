"""The machine's own NVMe disks as one fast folder; several become a RAID 0. What holds anything else is not touched.

They are empty when a machine is rented, and lost when it stops: what lies there is a copy.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from rebar.aws.attach import size_of
from rebar.aws.client import AwsError, run_program
from rebar.aws.filesystem import probe, require_blank
from rebar.aws.mount import mount, mounts_of, require_free_target
from rebar.aws.plan import Mode, Step, confirm_plan

MODEL = "Amazon EC2 NVMe Instance Storage"
BLOCKS, DEVICES, HOLDERS = Path("/sys/block"), Path("/dev"), Path("/sys/class/block")
NAME = "rebar"
"""Of our array, and of our file system: how both are known again after a reboot."""
ARRAY = Path("/dev/md") / NAME
MEMBER = "linux_raid_member"


def own_disks() -> list[Path]:
    """The instance store's disks, by what they say they are; EBS volumes say something else."""
    found = []
    for entry in sorted(BLOCKS.glob("nvme*")):
        try:
            model = (entry / "device" / "model").read_text().strip()
        except OSError:
            continue
        if model == MODEL:
            found.append((DEVICES / entry.name).resolve())
    return found


def prepare(folder: Path, mode: Mode) -> None:
    """Mount the machine's own disks at a folder, after joining and formatting them where all are blank.

    Run again, it finds what it made. Raises AwsError where a disk holds, or is part of, anything that is not ours.
    """
    folder, disks = folder.absolute(), own_disks()
    if not disks:
        print(f"this machine has no NVMe disks of its own: {folder} is on the disk it is on")
        if mode is Mode.DO:
            folder.mkdir(parents=True, exist_ok=True)
        return
    ours = _our_device(disks)
    if ours is not None and (places := mounts_of(ours)):
        if [place.target for place in places] != [folder]:
            raise AwsError(f"the machine's own disks are mounted on {places[0].target}: use that, or unmount it first")
        print(f"{folder} is on the machine's own disks already")
        return
    require_free_target(folder)
    names, size = " ".join(disk.name for disk in disks), sum(size_of(disk) for disk in disks) / 1e9
    is_array = _is_our_array(disks)
    steps = []
    if ours is None and not is_array:
        for disk in disks:
            require_blank(disk, size_of(disk))
        if len(disks) > 1:
            steps.append(Step(f"join {names} to a RAID 0 of {size:,.0f} GB"))
        steps.append(Step(f"make ext4 on {'it' if len(disks) > 1 else names}, which is blank"))
    elif ours is None:
        steps.append(Step(f"assemble the RAID 0 of {names} again"))
    steps.append(Step(f"mount it on {folder}; it is lost when the machine stops"))
    if not confirm_plan(mode, f"{len(disks)} disks of this machine", steps):
        return
    if ours is None:
        ours = _assemble(disks) if is_array else _create(disks) if len(disks) > 1 else disks[0]
    if not probe(ours):  # new, or made by a call that was killed before it came this far
        require_blank(ours, size_of(ours))
        run_program("mkfs.ext4", "-q", "-m", "0", "-L", NAME, str(ours))
    mount(ours, folder, "ext4", options="noatime")
    print(f"{folder} is on {ours}: {size:,.0f} GB")


def _our_device(disks: Sequence[Path]) -> Path | None:
    """The running array, or the one disk, that an earlier call made; None where there is none."""
    if len(disks) == 1 and not _is_our_array(disks):
        found = probe(disks[0])
        return disks[0] if (found.get("TYPE"), found.get("LABEL")) == ("ext4", NAME) else None
    if not _is_our_array(disks):
        return None
    holders = {holder.name for disk in disks for holder in (HOLDERS / disk.name / "holders").glob("*")}
    if not holders:
        return None
    if len(holders) > 1 or not all(list((HOLDERS / disk.name / "holders").glob("*")) for disk in disks):
        raise AwsError(f"the machine's own disks are in several uses ({', '.join(sorted(holders))}): left alone")
    return (DEVICES / holders.pop()).resolve()


def _is_our_array(disks: Sequence[Path]) -> bool:
    """Whether all disks are members of the one array that we made; raises AwsError where only some are."""
    found = [probe(disk) for disk in disks]
    arrays = {each.get("UUID") for each in found if each.get("TYPE") == MEMBER and _is_our_name(each.get("LABEL", ""))}
    members = [each for each in found if each.get("TYPE") == MEMBER]
    if not members:
        return False
    if len(members) < len(disks) or len(arrays) != 1 or None in arrays:
        names = ", ".join(disk.name for disk, each in zip(disks, found, strict=True) if each.get("TYPE") == MEMBER)
        raise AwsError(
            f"{names} belong to an array that is not Rebar's, or not whole: left alone. If nothing on it is needed: "
            "mdadm --stop it, then mdadm --zero-superblock each disk"
        )
    return True


def _is_our_name(label: str) -> bool:
    return label.rpartition(":")[2] == NAME


def _create(disks: Sequence[Path]) -> Path:
    words = ["--run", "--level=0", f"--name={NAME}", "--homehost=any", f"--raid-devices={len(disks)}"]
    run_program("mdadm", "--create", str(ARRAY), *words, *map(str, disks))
    return _settled()


def _assemble(disks: Sequence[Path]) -> Path:
    run_program("mdadm", "--assemble", str(ARRAY), *map(str, disks))
    return _settled()


def _settled() -> Path:
    """The array's device, once udev has made its link."""
    if not ARRAY.exists():
        run_program("udevadm", "settle", "--timeout=30")
    if not ARRAY.exists():
        raise AwsError(f"mdadm made the array, but there is no {ARRAY}: look at /proc/mdstat")
    return Path(os.path.realpath(ARRAY))
