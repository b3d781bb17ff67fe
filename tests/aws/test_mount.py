"""``volume`` commands on real file systems: formatting, mounting and finding a device."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.aws.conftest import CREATE, VOLUME, ZONE, assert_fails, kill_at, run_cli, run_instance, tags
from tests.aws.disks import Disks
from tests.aws.strict_aws import StrictAws

MIB = 2**20


def device(disks: Disks, volume_id: str) -> Path:
    return Path(disks.loops[volume_id])


def test_repeated_commands_change_nothing(aws: StrictAws, instance: str, mounted: str, folder: Path) -> None:
    here = ["--instance", instance]
    assert "is already mounted" in run_cli("volume", "mount", VOLUME, folder, "--yes").out
    run_cli("snapshot", "create", VOLUME, "--yes")
    assert "already has the content" in run_cli("snapshot", "create", VOLUME, "--yes").out
    run_cli("snapshot", "verify", VOLUME, *here, "--yes")
    assert "was verified at" in run_cli("snapshot", "verify", VOLUME, *here, "--yes").out
    assert "not mounted" in run_cli("volume", "umount", VOLUME, "--yes").out
    assert len(aws.sent("CreateSnapshot")) == 1
    assert len(aws.sent("CreateVolume")) == 2


def test_mount_without_yes_formats_nothing(disks: Disks, attached: str, folder: Path) -> None:
    planned = run_cli("volume", "mount", VOLUME, folder, "--format", "ext4")
    assert "make ext4 on /dev/loop" in planned.out
    assert not any(device(disks, attached).open("rb").read(4 * MIB))
    assert not folder.exists()


@pytest.mark.parametrize("offset", [0, 1024, 2**30 - 4096])
def test_mount_does_not_format_a_volume_with_data(disks: Disks, attached: str, folder: Path, offset: int) -> None:
    with device(disks, attached).open("r+b") as file:
        file.seek(offset)
        file.write(b"precious")
    assert_fails("volume-not-blank", "volume", "mount", VOLUME, folder, "--format", "ext4", "--yes")
    with device(disks, attached).open("rb") as file:
        file.seek(offset)
        assert file.read(8) == b"precious"


def test_mount_does_not_format_another_file_system(disks: Disks, attached: str, folder: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", device(disks, attached)], check=True)
    output = assert_fails("volume-not-blank", "volume", "mount", VOLUME, folder, "--format", "ext4", "--yes")
    assert "contains ext4" in output


def test_mount_does_not_format_a_device_of_another_size(disks: Disks, attached: str, folder: Path) -> None:
    os.truncate(disks.file(attached), 2 * 2**30)
    subprocess.run(["losetup", "--set-capacity", device(disks, attached)], check=True)
    assert "bytes instead of" in assert_fails(
        "volume-not-blank", "volume", "mount", VOLUME, folder, "--format", "ext4", "--yes"
    )


def test_mount_does_not_format_a_restored_volume(disks: Disks, instance: str, mounted: str, folder: Path) -> None:
    run_cli("snapshot", "create", VOLUME, "--yes")
    run_cli("snapshot", "restore", VOLUME, "--zone", ZONE, "--role", "copy", "--yes")
    run_cli("volume", "attach", "imagenet/copy", "--instance", instance, "--yes")
    (copy,) = set(disks.loops) - {mounted}
    with device(disks, copy).open("r+b") as file:
        file.write(bytes(64 * MIB))  # even where nothing can be seen on it
    assert_fails("volume-not-blank", "volume", "mount", "imagenet/copy", folder, "--format", "ext4", "--yes")


def test_mount_completes_an_interrupted_format_of_the_same_kind_only(
    aws: StrictAws, disks: Disks, ec2: Any, attached: str, folder: Path
) -> None:
    kill_at(aws, "CreateTags", "volume", "mount", VOLUME, folder, "--format", "ext4", "--yes")
    kind, identifier = tags(ec2, attached)["rebar:filesystem"].split()
    assert_fails("volume-filesystem", "volume", "mount", VOLUME, folder, "--format", "xfs", "--yes")
    run_cli("volume", "mount", VOLUME, folder, "--format", "ext4", "--yes")
    found = subprocess.run(["blkid", "-o", "value", "-s", "UUID", device(disks, attached)], capture_output=True)
    assert (kind, identifier) == ("ext4", found.stdout.decode().strip())


def test_mount_of_a_blank_volume_without_format_fails(attached: str, folder: Path) -> None:
    assert_fails("volume-filesystem", "volume", "mount", VOLUME, folder, "--yes")


def test_mount_finds_a_volume_by_its_serial_number_only(
    disks: Disks, attached: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rebar.aws.devices.UDEV_SECONDS", 0.0)
    disks.link(attached).unlink()
    output = assert_fails("volume-not-attached", "volume", "mount", VOLUME, folder, "--format", "ext4", "--yes")
    assert "nvme-Amazon_Elastic_Block_Store_vol" in output
    disks.link(attached).symlink_to("/dev/null")
    assert_fails("volume-device-wrong", "volume", "mount", VOLUME, folder, "--format", "ext4", "--yes")


def test_create_and_attach_complete_a_killed_call(aws: StrictAws, disks: Disks, instance: str) -> None:
    kill_at(aws, "CreateVolume", *CREATE)
    assert "exists already" in run_cli(*CREATE).out
    kill_at(aws, "AttachVolume", "volume", "attach", VOLUME, "--instance", instance, "--yes")
    assert "already" in run_cli("volume", "attach", VOLUME, "--instance", instance, "--yes").out
    assert (len(aws.sent("CreateVolume")), len(aws.sent("AttachVolume"))) == (1, 1)


def test_attach_to_another_instance_fails_while_mounted(ec2: Any, mounted: str) -> None:
    other = run_instance(ec2)
    assert_fails("volume-in-use", "volume", "attach", VOLUME, "--instance", other, "--yes")
