"""Volumes through the command line, against a strict AWS and on real disks."""

from pathlib import Path
from typing import Any

import pytest

from tests.aws.conftest import ZONE, run_cli, run_failing, run_instance
from tests.aws.strict_aws import Refused, StrictAws

CREATE = ["volume", "create", "--run", "imagenet", "--role", "beton", "--zone", ZONE, "--size", "1"]


def volume_id(ec2: Any, role: str = "beton") -> str:
    found = ec2.describe_volumes(Filters=[{"Name": "tag:rebar:role", "Values": [role]}])["Volumes"]
    assert len(found) == 1
    return str(found[0]["VolumeId"])


def test_nothing_is_created_unasked(aws: StrictAws) -> None:
    done = run_cli(*CREATE)
    assert "create a 1 GiB gp3 volume in us-east-1a, blank, about $0.08 a month" in done.out
    assert "nothing was changed" in done.out
    assert aws.sent("CreateVolume") == []


def test_check_asks_and_creates_nothing(aws: StrictAws) -> None:
    done = run_cli(*CREATE, "--check")
    assert "allowed" in done.out
    assert aws.sent("CreateVolume") == []
    assert [request.parameters["DryRun"] for request in aws.requests if request.action == "CreateVolume"] == ["true"]


def test_check_tells_what_would_be_refused(aws: StrictAws) -> None:
    message = "You are not authorized. Encoded authorization failure message: c2VjcmV0"
    aws.refuse["CreateVolume"] = Refused("UnauthorizedOperation", message, 403)
    told = run_failing(*CREATE, "--check")
    assert "UnauthorizedOperation" in told
    assert "docs/aws.md" in told
    assert "c2VjcmV0" not in told


def test_create_sends_what_was_asked(aws: StrictAws) -> None:
    run_cli(*CREATE, "--throughput", "250", "--owner", "vision", "--expires-days", "3", "--encrypted", "--yes")
    (sent,) = aws.sent("CreateVolume")
    assert sent["AvailabilityZone"] == ZONE
    assert (sent["Size"], sent["VolumeType"], sent["Throughput"], sent["Encrypted"]) == ("1", "gp3", "250", "true")
    assert sent["ClientToken"].startswith("rebar-")
    assert "SnapshotId" not in sent
    tags = {
        sent[f"TagSpecification.1.Tag.{number}.Key"]: sent[f"TagSpecification.1.Tag.{number}.Value"]
        for number in range(1, 8)
    }
    assert tags["rebar:project"] == "rebar"
    assert (tags["rebar:run"], tags["rebar:role"], tags["rebar:owner"]) == ("imagenet", "beton", "vision")
    assert tags["rebar:filesystem"] == "blank"
    assert tags["rebar:expires"].endswith("T23:59:59.000000Z")


def test_creating_again_finds_the_first(aws: StrictAws, ec2: Any) -> None:
    run_cli(*CREATE, "--yes")
    done = run_cli(*CREATE, "--yes")
    assert f"{volume_id(ec2)} exists already" in done.out
    assert len(aws.sent("CreateVolume")) == 1


def test_a_volume_that_is_not_seen_yet_is_not_created_twice(aws: StrictAws, ec2: Any) -> None:
    aws.invisible_describes = 2
    first = run_cli(*CREATE, "--yes")
    made = volume_id(ec2)
    aws._hidden[made] = 1  # the listing does not have it, though it exists
    second = run_cli(*CREATE, "--yes")
    assert f"created {made}" in first.out
    assert f"created {made}" in second.out  # AWS answered the same token with the same volume
    assert len({sent["ClientToken"] for sent in aws.sent("CreateVolume")}) == 1


def test_a_deleted_volume_is_created_anew(aws: StrictAws, ec2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rebar.aws.volumes.APPEAR_SECONDS", 0.0)
    run_cli(*CREATE, "--yes")
    before = volume_id(ec2)
    ec2.delete_volume(VolumeId=before)
    run_cli(*CREATE, "--yes")
    assert volume_id(ec2) != before


def test_the_same_name_with_another_size_stops(aws: StrictAws) -> None:
    run_cli(*CREATE, "--yes")
    told = run_failing(*CREATE[:-1], "2", "--yes")
    assert "Size is 1, not 2" in told


def test_two_of_one_name_stop_every_command(aws: StrictAws, ec2: Any) -> None:
    run_cli(*CREATE, "--yes")
    tags = ec2.describe_volumes(VolumeIds=[volume_id(ec2)])["Volumes"][0]["Tags"]
    ec2.create_volume(
        AvailabilityZone=ZONE, Size=1, TagSpecifications=[{"ResourceType": "volume", "Tags": tags}], VolumeType="gp3"
    )
    for words in (CREATE, ["volume", "detach", "imagenet/beton"], ["volume", "delete", "imagenet/beton"]):
        assert "2 carry these tags" in run_failing(*words, "--yes")


def test_the_volume_is_found_on_the_last_page(aws: StrictAws, ec2: Any) -> None:
    for number in range(7):
        run_cli(*CREATE[:3], f"run{number}", *CREATE[4:], "--yes")
    assert "exists already" in run_cli(*CREATE[:3], "run6", *CREATE[4:], "--yes").out
    assert "is detached already" in run_cli("volume", "detach", "run6/beton", "--yes").out


def test_what_does_not_carry_our_tags_is_left_alone(aws: StrictAws, ec2: Any) -> None:
    foreign = ec2.create_volume(AvailabilityZone=ZONE, Size=1, VolumeType="gp3")["VolumeId"]
    assert "does not carry Rebar's tags" in run_failing("volume", "delete", foreign, "--yes")
    run_cli(*CREATE, "--project", "other", "--yes")
    assert "belongs to project 'other'" in run_failing("volume", "delete", volume_id(ec2), "--yes")
    assert "there is no volume imagenet/beton" in run_failing("volume", "delete", "imagenet/beton", "--yes")


def test_attach_stays_in_its_zone_and_to_running_machines(aws: StrictAws, ec2: Any) -> None:
    run_cli(*CREATE, "--yes")
    elsewhere = run_instance(ec2, "us-east-1b")
    told = run_failing("volume", "attach", "imagenet/beton", "--instance", elsewhere, "--yes")
    assert "is in us-east-1a" in told
    assert "snapshot restore --zone us-east-1b" in told
    stopped = run_instance(ec2)
    ec2.stop_instances(InstanceIds=[stopped])
    assert "running machines only" in run_failing("volume", "attach", "imagenet/beton", "--instance", stopped, "--yes")
    assert aws.sent("AttachVolume") == []


def test_attach_once_and_never_to_two(aws: StrictAws, ec2: Any, instance: str) -> None:
    run_cli(*CREATE, "--yes")
    run_cli("volume", "attach", "imagenet/beton", "--instance", instance, "--yes")
    done = run_cli("volume", "attach", "imagenet/beton", "--instance", instance, "--yes")
    assert "is attached to" in done.out
    assert "already" in done.out
    (sent,) = aws.sent("AttachVolume")
    assert sent["Device"] == "/dev/sdf"
    other = run_instance(ec2)
    assert f"({instance}): detach it there first" in run_failing(
        "volume", "attach", "imagenet/beton", "--instance", other, "--yes"
    )


def test_the_machine_asks_who_it_is(aws: StrictAws, instance: str, metadata: Any) -> None:
    run_cli(*CREATE, "--yes")
    assert "give --instance" in run_failing("volume", "attach", "imagenet/beton", "--yes")
    metadata(**{"instance-id": instance, "placement/availability-zone": ZONE})
    assert f"is attached to {instance}" in run_cli("volume", "attach", "imagenet/beton", "--yes").out


def test_detach_from_another_running_machine_stops(aws: StrictAws, ec2: Any, instance: str) -> None:
    run_cli(*CREATE, "--yes")
    run_cli("volume", "attach", "imagenet/beton", "--instance", instance, "--yes")
    assert "not this one" in run_failing("volume", "detach", "imagenet/beton", "--yes")
    ec2.stop_instances(InstanceIds=[instance])
    assert "is detached" in run_cli("volume", "detach", "imagenet/beton", "--yes").out
    assert all("Force" not in sent for sent in aws.sent("DetachVolume"))


def test_the_device_of_a_detached_volume_is_not_waited_for(aws: StrictAws, tmp_path: Path) -> None:
    run_cli(*CREATE, "--yes")
    for words in (["volume", "mount", "imagenet/beton", tmp_path / "data"], ["snapshot", "create", "imagenet/beton"]):
        assert "is not attached to any machine" in run_failing(*words, "--yes")


def test_a_volume_without_verified_snapshot_is_not_deleted(aws: StrictAws, ec2: Any) -> None:
    run_cli(*CREATE, "--yes")
    assert "no verified snapshot" in run_failing("volume", "delete", "imagenet/beton", "--yes")
    ec2.create_snapshot(VolumeId=volume_id(ec2))  # somebody's, not verified
    assert "no verified snapshot" in run_failing("volume", "delete", "imagenet/beton", "--yes")
    assert aws.sent("DeleteVolume") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["volume", "detach", "nonsense"], "names no volume"),
        (["snapshot", "restore", "nonsense", "--zone", ZONE], "names no snapshot"),
        (["snapshot", "restore", "imagenet/beton", "--zone", ZONE], "there is no snapshot imagenet/beton"),
        ([*CREATE[:3], "with space", *CREATE[4:]], "run must be letters"),
        ([*CREATE[:7], "us-east-1x", *CREATE[8:], "--yes"], "AWS answered"),
    ],
)
def test_mistakes_are_told_in_one_line(aws: StrictAws, words: list[str], message: str) -> None:
    assert message in run_failing(*words)


def test_no_credentials_and_no_answer_are_told(aws: StrictAws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "Could not connect" in run_failing(*CREATE)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no AWS credentials" in run_failing(*CREATE)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert "no region: give --region" in run_failing(*CREATE)
