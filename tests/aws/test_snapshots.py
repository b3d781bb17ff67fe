"""``snapshot`` commands on real file systems, from a blank volume to a verified snapshot and back."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rebar.aws.tags import VISIBILITY_SECONDS
from tests.aws.conftest import CREATE, VOLUME, ZONE, assert_fails, kill_at, run_cli, tags
from tests.aws.disks import Disks, checksums, damage, fill, mounted_at, position_in
from tests.aws.strict_aws import ErrorResponse, StrictAws

MIB = 2**20


def our_snapshots(aws: StrictAws) -> list[str]:
    return list(aws._snapshots)


def test_blank_volume_to_verified_snapshot_and_back(
    aws: StrictAws, disks: Disks, ec2: Any, instance: str, metadata: Any, folder: Path
) -> None:
    metadata(**{"instance-id": instance, "placement/availability-zone": ZONE})
    run_cli(*CREATE)
    run_cli("volume", "attach", VOLUME, "--yes")
    run_cli("volume", "mount", VOLUME, folder, "--format", "ext4", "--yes")
    fill(folder)
    before = checksums(folder)
    (original,) = disks.loops

    taken = run_cli("snapshot", "create", VOLUME, "--yes")
    assert "13 files" in taken.out
    assert mounted_at(disks.loops[original]) == []
    (snapshot,) = our_snapshots(aws)
    assert "rebar:verified" not in tags(ec2, snapshot)

    run_cli("snapshot", "verify", VOLUME, "--yes")
    assert "rebar:verified" in tags(ec2, snapshot)
    assert list(disks.loops) == [original]  # the temporary copy is gone
    assert "verified" in run_cli("snapshot", "list").out

    run_cli("volume", "detach", VOLUME, "--yes")
    run_cli("volume", "delete", VOLUME, "--yes")
    assert not disks.file(original).exists()

    run_cli("snapshot", "restore", VOLUME, "--zone", ZONE, "--yes")
    run_cli("volume", "attach", VOLUME, "--yes")
    run_cli("volume", "mount", VOLUME, folder, "--read-only", "--yes")
    after = checksums(folder)
    assert after.pop("rebar.sha256") == tags(ec2, snapshot)["rebar:manifest"]
    assert after == before
    assert os.readlink(folder / "latest") == "val.beton"
    known = subprocess.run(["sha256sum", "--check", "--quiet", "rebar.sha256"], cwd=folder, capture_output=True)
    assert known.returncode == 0, known.stderr  # coreutils reads the manifest too

    run_cli("volume", "umount", VOLUME, "--yes")
    run_cli("volume", "detach", VOLUME, "--yes")
    run_cli("volume", "delete", VOLUME, "--yes")  # never written to since it was restored


def test_verify_fails_if_the_snapshot_misses_a_block(
    aws: StrictAws, disks: Disks, ec2: Any, instance: str, mounted: str, folder: Path
) -> None:
    lost = (folder / "train" / "05.bin").read_bytes()
    run_cli("snapshot", "create", VOLUME, "--yes")
    (snapshot,) = our_snapshots(aws)
    damage(disks.file(snapshot), lost)
    output = assert_fails("snapshot-damaged", "snapshot", "verify", snapshot, "--instance", instance, "--yes")
    assert "NOT verified: 1 files differ (train/05.bin has different contents)" in output
    assert "rebar:verified" not in tags(ec2, snapshot)
    assert list(disks.loops) == [mounted]  # the copy is kept, but detached
    (copy,) = [path.stem for path in disks.folder.glob("vol-*") if path.stem != mounted]
    assert copy in output
    assert_fails("volume-not-saved", "volume", "delete", copy, "--yes")


def test_verify_again_removes_the_tag_if_it_fails(
    aws: StrictAws, disks: Disks, ec2: Any, instance: str, mounted: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VISIBILITY_SECONDS, "volume", 0)  # the first copy was deleted
    lost = (folder / "val.beton").read_bytes()
    run_cli("snapshot", "create", VOLUME, "--yes")
    (snapshot,) = our_snapshots(aws)
    run_cli("snapshot", "verify", snapshot, "--instance", instance, "--yes")
    assert "rebar:verified" in tags(ec2, snapshot)
    damage(disks.file(snapshot), lost)
    assert_fails("snapshot-damaged", "snapshot", "verify", snapshot, "--instance", instance, "--again", "--yes")
    assert "rebar:verified" not in tags(ec2, snapshot)


def test_snapshot_of_a_mounted_file_system_misses_data(disks: Disks, ec2: Any, mounted: str) -> None:
    """Shows why ``snapshot create`` unmounts or freezes: unwritten data is not in a snapshot."""
    hasty = ec2.create_snapshot(VolumeId=mounted)["SnapshotId"]
    written = (Path(mounted_at(disks.loops[mounted])[0]) / "val.beton").read_bytes()
    assert position_in(disks.file(hasty), written[:4096]) is None


def test_keep_mounted_freezes_and_thaws(
    aws: StrictAws, disks: Disks, instance: str, mounted: str, folder: Path
) -> None:
    states = []

    def is_frozen() -> None:
        states.append(subprocess.run(["fsfreeze", "--freeze", folder], capture_output=True).returncode != 0)

    aws.before["CreateSnapshot"] = is_frozen
    run_cli("snapshot", "create", VOLUME, "--keep-mounted", "--yes")
    assert states == [True]
    (folder / "after").write_text("writable again")
    assert mounted_at(disks.loops[mounted]) == [str(folder)]
    run_cli("snapshot", "verify", VOLUME, "--instance", instance, "--yes")
    run_cli("volume", "umount", VOLUME, "--yes")
    run_cli("volume", "detach", VOLUME, "--yes")
    assert_fails("volume-not-saved", "volume", "delete", VOLUME, "--yes")  # 'after' is in none


@pytest.mark.parametrize("words", [[], ["--keep-mounted"]])
def test_create_snapshot_refused_by_aws_thaws_the_file_system(
    aws: StrictAws, mounted: str, folder: Path, words: list[str]
) -> None:
    aws.refuse["CreateSnapshot"] = ErrorResponse("SnapshotCreationPerVolumeRateExceeded", "too many")
    output = assert_fails("aws-request-refused", "snapshot", "create", VOLUME, *words, "--yes")
    assert "SnapshotCreationPerVolumeRateExceeded" in output
    aws.refuse.clear()
    if words:
        (folder / "still").write_text("writable")
    else:
        run_cli("volume", "mount", VOLUME, folder, "--yes")
    run_cli("snapshot", "create", VOLUME, *words, "--yes")


def test_create_snapshot_fails_if_a_file_changes_during_checksums(
    aws: StrictAws, mounted: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rebar.aws import create_snapshot

    honest = create_snapshot.take_manifest

    def disturbed(target: Path) -> Any:
        taken = honest(target)
        (folder / "train" / "03.bin").write_bytes(b"changed")
        return taken

    monkeypatch.setattr(create_snapshot, "take_manifest", disturbed)
    for words in ([], ["--keep-mounted"]):
        output = assert_fails("snapshot-files-changed", "snapshot", "create", VOLUME, *words, "--yes")
        assert "1 files changed while their checksums were computed, such as train/03.bin" in output
        (folder / "writable").write_text("as before")
        (folder / "writable").unlink()
    assert aws.sent("CreateSnapshot") == []


def test_create_snapshot_fails_if_files_are_open(aws: StrictAws, mounted: str, folder: Path) -> None:
    with (folder / "val.beton").open("rb"):
        assert "busy" in assert_fails("program-failed", "snapshot", "create", VOLUME, "--yes")
    (folder / "writable").write_text("as before")
    assert aws.sent("CreateSnapshot") == []


def test_delete_fails_if_mounted_for_writing_after_the_snapshot(
    aws: StrictAws, instance: str, mounted: str, folder: Path
) -> None:
    run_cli("snapshot", "create", VOLUME, "--yes")
    run_cli("snapshot", "verify", VOLUME, "--instance", instance, "--yes")
    run_cli("volume", "mount", VOLUME, folder, "--yes")
    (folder / "new").write_text("in no snapshot")
    assert_fails("volume-in-use", "volume", "detach", VOLUME, "--yes")
    run_cli("volume", "umount", VOLUME, "--yes")
    assert_fails("volume-in-use", "volume", "delete", VOLUME, "--yes")
    run_cli("volume", "detach", VOLUME, "--yes")
    assert_fails("volume-not-saved", "volume", "delete", VOLUME, "--yes")
    assert mounted not in [sent["VolumeId"] for sent in aws.sent("DeleteVolume")]


@pytest.mark.parametrize("words", [[], ["--keep-mounted"]])
def test_create_snapshot_completes_a_killed_call(aws: StrictAws, mounted: str, folder: Path, words: list[str]) -> None:
    kill_at(aws, "CreateSnapshot", "snapshot", "create", VOLUME, *words, "--yes")
    if words:  # thawed by the process that outlives it
        (folder / "writable").write_text("at once")
        (folder / "writable").unlink()
    done = run_cli("snapshot", "create", VOLUME, *words, "--yes")
    assert "is completed" in done.out
    assert len(aws.sent("CreateSnapshot")) == 1


@pytest.mark.parametrize(
    "action",
    [
        "AttachVolume",
        *(
            pytest.param(a, marks=pytest.mark.nightly)
            for a in ("CreateVolume", "DetachVolume", "CreateTags", "DeleteVolume")
        ),
    ],
)
def test_verify_completes_a_killed_call(
    aws: StrictAws, disks: Disks, ec2: Any, instance: str, mounted: str, action: str
) -> None:
    run_cli("snapshot", "create", VOLUME, "--yes")
    (snapshot,) = our_snapshots(aws)
    kill_at(aws, action, "snapshot", "verify", VOLUME, "--instance", instance, "--yes")
    run_cli("snapshot", "verify", VOLUME, "--instance", instance, "--yes")
    assert "rebar:verified" in tags(ec2, snapshot)
    assert list(disks.loops) == [mounted]
    assert [path.stem for path in disks.folder.glob("vol-*")] == [mounted]


def test_check_changes_nothing(aws: StrictAws, disks: Disks, instance: str, mounted: str, folder: Path) -> None:
    assert "4: allowed" in run_cli("snapshot", "create", VOLUME, "--check").out
    assert aws.sent("CreateSnapshot") == []
    assert not (folder / "rebar.sha256").exists()
    run_cli("snapshot", "create", VOLUME, "--yes")
    assert "1: allowed" in run_cli("snapshot", "verify", VOLUME, "--instance", instance, "--check").out
    assert "allowed" in run_cli("volume", "detach", VOLUME, "--check").out
    assert list(disks.loops) == [mounted]


def test_create_snapshot_mounts_an_unmounted_volume_temporarily(aws: StrictAws, disks: Disks, mounted: str) -> None:
    run_cli("volume", "umount", VOLUME, "--yes")
    aws.refuse["CreateSnapshot"] = ErrorResponse("InternalError", "later")
    assert_fails("aws-request-refused", "snapshot", "create", VOLUME, "--yes")
    assert mounted_at(disks.loops[mounted]) == []
    aws.refuse.clear()
    assert "13 files" in run_cli("snapshot", "create", VOLUME, "--yes").out
    assert mounted_at(disks.loops[mounted]) == []
    assert len(aws.sent("CreateSnapshot")) == 2


@pytest.mark.skipif(
    shutil.which("mkfs.xfs") is None or "\txfs\n" not in Path("/proc/filesystems").read_text(),
    reason="xfsprogs or the kernel's xfs is missing",
)
def test_xfs_volume_to_verified_snapshot(aws: StrictAws, ec2: Any, instance: str, attached: str, folder: Path) -> None:
    run_cli("volume", "mount", VOLUME, folder, "--format", "xfs", "--yes")
    fill(folder)
    run_cli("snapshot", "create", VOLUME, "--keep-mounted", "--yes")
    run_cli("snapshot", "verify", VOLUME, "--instance", instance, "--yes")  # its UUID is mounted already
    (snapshot,) = our_snapshots(aws)
    assert "rebar:verified" in tags(ec2, snapshot)
