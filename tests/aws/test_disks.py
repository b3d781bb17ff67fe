"""``data disks`` on loop devices with the model name of EC2's NVMe disks; with real mdadm if the kernel has RAID."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aws.conftest import DISKS_MISSING, assert_fails, run_cli
from tests.aws.disks import mounted_at

MIB = 2**20
MODEL = "Amazon EC2 NVMe Instance Storage"
RAID = shutil.which("mdadm") is not None and Path("/proc/mdstat").exists()

# Replaces mdadm: records its arguments, and uses one loop device as the array.
RECORDING_MDADM = """#!/bin/bash
echo "mdadm $*" >>"$CALLS"
[[ -z ${MDADM_FAILS:-} ]] || { echo "mdadm: no" >&2; exit 1; }
ln -sfn "$ARRAY_DEVICE" "$2"
"""


class Machine:
    """A machine with NVMe disks: folders like /sys and /dev for loop devices."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loops: list[str] = []
        for name in ("sys", "dev", "holders"):
            (root / name).mkdir()

    def loop(self, mib: int = 64) -> str:
        disk = self.root / f"{len(self.loops)}.raw"
        disk.touch()
        os.truncate(disk, mib * MIB)
        done = subprocess.run(["losetup", "--find", "--show", disk], capture_output=True, text=True, check=True)
        self.loops.append(done.stdout.strip())
        return self.loops[-1]

    def add_disk(self, model: str = MODEL) -> Path:
        name, loop = f"nvme{len(self.loops)}n1", self.loop()
        (self.root / "sys" / name / "device").mkdir(parents=True)
        (self.root / "sys" / name / "device" / "model").write_text(f"{model:<40}\n")
        (self.root / "dev" / name).symlink_to(loop)
        return Path(loop)

    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def close(self) -> None:
        for loop in self.loops:
            for target in mounted_at(loop):
                subprocess.run(["umount", target], check=True)
            subprocess.run(["losetup", "--detach", loop], check=True)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    if DISKS_MISSING:
        pytest.skip(f"no real block devices here: {DISKS_MISSING}")
    made = Machine(tmp_path)
    monkeypatch.setattr("rebar.aws.mount.BLOCKS", tmp_path / "sys")
    monkeypatch.setattr("rebar.aws.mount.DEVICES", tmp_path / "dev")
    yield made
    made.close()


@pytest.fixture
def mdadm(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the replacement of mdadm on PATH."""
    programs = machine.root / "bin"
    programs.mkdir()
    (programs / "mdadm").write_text(RECORDING_MDADM)
    (programs / "mdadm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(machine.root / "calls"))
    monkeypatch.setenv("ARRAY_DEVICE", machine.loop(128))
    monkeypatch.setattr("rebar.aws.mount.ARRAY", machine.root / "dev" / "rebar")


def mark_as_array_members(monkeypatch: pytest.MonkeyPatch, *disks: Path, label: str = "any:rebar") -> None:
    """Make ``probe`` return that these disks are members of an array."""
    from rebar.aws import devices, mount

    def probe(device: Path) -> dict[str, str]:
        return {"TYPE": "linux_raid_member", "LABEL": label, "UUID": "1"} if device in disks else devices.probe(device)

    monkeypatch.setattr(mount, "probe", probe)


def test_one_disk_is_formatted_once_and_recognized_again(machine: Machine, tmp_path: Path) -> None:
    disk, folder = machine.add_disk(), tmp_path / "nvme"
    planned = run_cli("data", "disks", folder)
    assert f"make ext4 on {disk.name}, which is blank" in planned.out
    assert not any(disk.read_bytes())
    assert not folder.exists()
    run_cli("data", "disks", folder, "--yes")
    (folder / "train.beton").write_text("images")
    assert "is already on the instance store" in run_cli("data", "disks", folder, "--yes").out
    assert_fails("mount-conflict", "data", "disks", tmp_path / "elsewhere", "--yes")
    subprocess.run(["umount", folder], check=True)  # as a reboot does
    again = run_cli("data", "disks", folder, "--yes").out
    assert "make ext4" not in again
    assert (folder / "train.beton").read_text() == "images"


def test_several_disks_become_a_raid_0(
    machine: Machine, mdadm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks, folder = [machine.add_disk(), machine.add_disk()], tmp_path / "nvme"
    planned = run_cli("data", "disks", folder).out
    assert f"create a RAID 0 of {disks[0].name} {disks[1].name}" in planned
    assert machine.calls() == []
    run_cli("data", "disks", folder, "--yes")
    array = tmp_path / "dev" / "rebar"
    options = "--run --level=0 --name=rebar --homehost=any --raid-devices=2"
    assert machine.calls() == [f"mdadm --create {array} {options} {disks[0]} {disks[1]}"]
    (folder / "train.beton").write_text("images")
    subprocess.run(["umount", folder], check=True)

    mark_as_array_members(monkeypatch, *disks)
    array.unlink()  # a reboot
    assert "assemble the RAID 0" in run_cli("data", "disks", folder, "--yes").out
    assert machine.calls()[1:] == [f"mdadm --assemble {array} {disks[0]} {disks[1]}"]
    assert (folder / "train.beton").read_text() == "images"


def test_a_running_array_is_only_mounted(
    machine: Machine, mdadm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks, folder = [machine.add_disk(), machine.add_disk()], tmp_path / "nvme"
    (tmp_path / "dev" / "md127").symlink_to(os.environ["ARRAY_DEVICE"])
    for disk in disks:
        (tmp_path / "holders" / disk.name / "holders" / "md127").mkdir(parents=True)
    monkeypatch.setattr("rebar.aws.mount.HOLDERS", tmp_path / "holders")
    mark_as_array_members(monkeypatch, *disks)
    run_cli("data", "disks", folder, "--yes")  # created by a call that was killed before mkfs
    assert mounted_at(os.environ["ARRAY_DEVICE"]) == [str(folder)]
    assert machine.calls() == []


def test_failing_mdadm_formats_nothing(
    machine: Machine, mdadm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = [machine.add_disk(), machine.add_disk()]
    monkeypatch.setenv("MDADM_FAILS", "yes")
    assert "exit status 1: mdadm: no" in assert_fails("program-failed", "data", "disks", tmp_path / "nvme", "--yes")
    assert not any(any(disk.read_bytes()) for disk in disks)


@pytest.mark.parametrize("what", ["ext4", "partitions", "bytes", "mounted"])
def test_disks_with_data_are_not_touched(machine: Machine, mdadm: None, tmp_path: Path, what: str) -> None:
    machine.add_disk()
    disk = machine.add_disk()
    if what in ("ext4", "mounted"):
        subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    elif what == "bytes":
        with disk.open("r+b") as file:
            file.seek(-4096, os.SEEK_END)
            file.write(b"precious")
    else:
        with disk.open("r+b") as file:  # a master boot record with one partition
            entry = bytes([0, 0, 2, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (1000).to_bytes(4, "little")
            file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
    if what == "mounted":
        (tmp_path / "old").mkdir()
        subprocess.run(["mount", "-o", "ro", disk, tmp_path / "old"], check=True)  # else ext4 writes to it
    before = disk.read_bytes()
    assert_fails("volume-not-blank", "data", "disks", tmp_path / "nvme", "--yes")
    assert machine.calls() == []
    assert disk.read_bytes() == before


@pytest.mark.parametrize("label", ["any:rebar", "host:somebodys"])
def test_incomplete_or_foreign_arrays_are_not_touched(
    machine: Machine, mdadm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    disks = [machine.add_disk(), machine.add_disk()]
    mark_as_array_members(monkeypatch, *(disks[:1] if label == "any:rebar" else disks), label=label)
    assert_fails("instance-store-in-use", "data", "disks", tmp_path / "nvme", "--yes")
    assert machine.calls() == []


def test_other_disks_are_ignored(machine: Machine, tmp_path: Path) -> None:
    for model in ("Amazon Elastic Block Store", "Samsung SSD 990 PRO 2TB", "Instance Storage"):
        machine.add_disk(model)
    done = run_cli("data", "disks", tmp_path / "nvme", "--yes")
    assert "has no instance store" in done.out
    assert (tmp_path / "nvme").is_dir()
    assert not any(any(Path(loop).read_bytes()) for loop in machine.loops)


@pytest.mark.skipif(not RAID, reason="mdadm or the kernel's RAID is missing")
def test_real_raid_0(machine: Machine, tmp_path: Path) -> None:
    machine.add_disk(), machine.add_disk()
    folder = tmp_path / "nvme"
    try:
        run_cli("data", "disks", folder, "--yes")
        (folder / "train.beton").write_bytes(content := os.urandom(20 * MIB))
        subprocess.run(["umount", folder], check=True)
        subprocess.run(["mdadm", "--stop", "/dev/md/rebar"], check=True)
        run_cli("data", "disks", folder, "--yes")
        assert (folder / "train.beton").read_bytes() == content
        assert "is already on the instance store" in run_cli("data", "disks", folder, "--yes").out
    finally:
        subprocess.run(["umount", folder], capture_output=True)
        subprocess.run(["mdadm", "--stop", "/dev/md/rebar"], capture_output=True)
