"""``volume`` commands against a strict AWS."""

from pathlib import Path
from typing import Any

import pytest

from rebar.aws.tags import VISIBILITY_SECONDS
from tests.aws.conftest import ZONE, assert_fails, run_cli, run_instance
from tests.aws.strict_aws import NAMESPACE, CustomResponse, ErrorResponse, StrictAws

CREATE = ["volume", "create", "--run", "imagenet", "--role", "beton", "--zone", ZONE, "--size", "1"]


def volume_id(ec2: Any, role: str = "beton") -> str:
    found = ec2.describe_volumes(Filters=[{"Name": "tag:rebar:role", "Values": [role]}])["Volumes"]
    assert len(found) == 1
    return str(found[0]["VolumeId"])


def test_create_without_yes_creates_nothing(aws: StrictAws) -> None:
    done = run_cli(*CREATE)
    assert "create a 1 GiB gp3 volume in us-east-1a, blank, about $0.08 a month" in done.out
    assert "nothing was changed" in done.out
    assert aws.sent("CreateVolume") == []


def test_create_with_check_sends_a_dry_run(aws: StrictAws) -> None:
    done = run_cli(*CREATE, "--check")
    assert "allowed" in done.out
    assert aws.sent("CreateVolume") == []
    assert [request.parameters["DryRun"] for request in aws.requests if request.action == "CreateVolume"] == ["true"]


def test_create_with_check_reports_a_refusal(aws: StrictAws) -> None:
    message = "You are not authorized. Encoded authorization failure message: c2VjcmV0"
    aws.refuse["CreateVolume"] = ErrorResponse("UnauthorizedOperation", message, 403)
    output = assert_fails("aws-plan-refused", *CREATE, "--check")
    assert "UnauthorizedOperation" in output
    assert "docs/aws.md" in output
    assert "c2VjcmV0" not in output


def test_create_sends_all_options(aws: StrictAws) -> None:
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


def test_create_again_finds_the_first_volume(aws: StrictAws, ec2: Any) -> None:
    run_cli(*CREATE, "--yes")
    done = run_cli(*CREATE, "--yes")
    assert f"{volume_id(ec2)} exists already" in done.out
    assert len(aws.sent("CreateVolume")) == 1


def test_create_again_before_describe_shows_the_volume_reuses_its_token(aws: StrictAws, ec2: Any) -> None:
    aws.invisible_describes = 2
    first = run_cli(*CREATE, "--yes")
    made = volume_id(ec2)
    aws._hidden[made] = 1  # the listing does not have it yet
    second = run_cli(*CREATE, "--yes")
    assert f"created {made}" in first.out
    assert f"created {made}" in second.out  # AWS answered the same token with the same volume
    assert len({sent["ClientToken"] for sent in aws.sent("CreateVolume")}) == 1


def test_create_after_delete_creates_a_new_volume(ec2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VISIBILITY_SECONDS, "volume", 0)
    run_cli(*CREATE, "--yes")
    before = volume_id(ec2)
    ec2.delete_volume(VolumeId=before)
    run_cli(*CREATE, "--yes")
    assert volume_id(ec2) != before


def test_create_of_a_volume_in_the_state_error_fails_at_once(aws: StrictAws) -> None:
    found = CustomResponse(
        f'<DescribeVolumesResponse xmlns="{NAMESPACE}"><volumeSet><item><volumeId>vol-0123456789abcdef0</volumeId>'
        "<status>error</status></item></volumeSet></DescribeVolumesResponse>"
    )
    aws.before["CreateVolume"] = lambda: aws.refuse.update(DescribeVolumes=found)
    assert "is error" in assert_fails("aws-wait-failed", *CREATE, "--yes")


def test_create_again_with_another_size_fails(aws: StrictAws) -> None:
    run_cli(*CREATE, "--yes")
    output = assert_fails("aws-exists-differently", *CREATE[:-1], "2", "--yes")
    assert "Size is 1, not 2" in output


def test_two_volumes_of_one_name_fail_every_command(ec2: Any) -> None:
    run_cli(*CREATE, "--yes")
    tags = ec2.describe_volumes(VolumeIds=[volume_id(ec2)])["Volumes"][0]["Tags"]
    ec2.create_volume(
        AvailabilityZone=ZONE, Size=1, TagSpecifications=[{"ResourceType": "volume", "Tags": tags}], VolumeType="gp3"
    )
    for words in (CREATE, ["volume", "detach", "imagenet/beton"], ["volume", "delete", "imagenet/beton"]):
        assert_fails("aws-ambiguous", *words, "--yes")


def test_volumes_on_the_last_page_are_found(ec2: Any) -> None:
    for number in range(7):
        run_cli(*CREATE[:3], f"run{number}", *CREATE[4:], "--yes")
    assert "exists already" in run_cli(*CREATE[:3], "run6", *CREATE[4:], "--yes").out
    assert "is already detached" in run_cli("volume", "detach", "run6/beton", "--yes").out


def test_delete_of_volumes_without_our_tags_fails(ec2: Any) -> None:
    foreign = ec2.create_volume(AvailabilityZone=ZONE, Size=1, VolumeType="gp3")["VolumeId"]
    assert_fails("aws-not-ours", "volume", "delete", foreign, "--yes")
    run_cli(*CREATE, "--project", "other", "--yes")
    assert "'other'" in assert_fails("aws-not-ours", "volume", "delete", volume_id(ec2), "--yes")
    assert_fails("aws-not-found", "volume", "delete", "imagenet/beton", "--yes")


def test_attach_to_another_zone_or_a_stopped_instance_fails(aws: StrictAws, ec2: Any) -> None:
    run_cli(*CREATE, "--yes")
    elsewhere = run_instance(ec2, "us-east-1b")
    output = assert_fails(
        "volume-not-attachable", "volume", "attach", "imagenet/beton", "--instance", elsewhere, "--yes"
    )
    assert "is in us-east-1a" in output
    assert "snapshot restore --zone us-east-1b" in output
    stopped = run_instance(ec2)
    ec2.stop_instances(InstanceIds=[stopped])
    assert "is stopped" in assert_fails(
        "volume-not-attachable", "volume", "attach", "imagenet/beton", "--instance", stopped, "--yes"
    )
    assert aws.sent("AttachVolume") == []


def test_attach_again_is_a_no_op_and_to_a_second_instance_fails(aws: StrictAws, ec2: Any, instance: str) -> None:
    run_cli(*CREATE, "--yes")
    run_cli("volume", "attach", "imagenet/beton", "--instance", instance, "--yes")
    done = run_cli("volume", "attach", "imagenet/beton", "--instance", instance, "--yes")
    assert "is already attached to" in done.out
    (sent,) = aws.sent("AttachVolume")
    assert sent["Device"] == "/dev/sdf"
    other = run_instance(ec2)
    assert f"({instance})" in assert_fails(
        "volume-in-use", "volume", "attach", "imagenet/beton", "--instance", other, "--yes"
    )


def test_attach_defaults_to_this_instance(instance: str, metadata: Any) -> None:
    run_cli(*CREATE, "--yes")
    assert "--instance" in assert_fails("aws-no-instance", "volume", "attach", "imagenet/beton", "--yes")
    metadata(**{"instance-id": instance, "placement/availability-zone": ZONE})
    assert f"is attached to {instance}" in run_cli("volume", "attach", "imagenet/beton", "--yes").out


def test_detach_from_another_running_instance_fails(aws: StrictAws, ec2: Any, instance: str) -> None:
    run_cli(*CREATE, "--yes")
    run_cli("volume", "attach", "imagenet/beton", "--instance", instance, "--yes")
    assert_fails("volume-in-use", "volume", "detach", "imagenet/beton", "--yes")
    ec2.stop_instances(InstanceIds=[instance])
    assert "is detached" in run_cli("volume", "detach", "imagenet/beton", "--yes").out
    assert all("Force" not in sent for sent in aws.sent("DetachVolume"))


def test_mount_and_snapshot_of_a_detached_volume_fail_at_once(aws: StrictAws, tmp_path: Path) -> None:
    run_cli(*CREATE, "--yes")
    for words in (["volume", "mount", "imagenet/beton", tmp_path / "data"], ["snapshot", "create", "imagenet/beton"]):
        assert_fails("volume-not-attached", *words, "--yes")


def test_delete_without_verified_snapshot_fails(aws: StrictAws, ec2: Any) -> None:
    run_cli(*CREATE, "--yes")
    assert_fails("volume-not-saved", "volume", "delete", "imagenet/beton", "--yes")
    ec2.create_snapshot(VolumeId=volume_id(ec2))  # without our tags, not verified
    assert_fails("volume-not-saved", "volume", "delete", "imagenet/beton", "--yes")
    assert aws.sent("DeleteVolume") == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["volume", "detach", "nonsense"], "aws-name-invalid"),
        (["snapshot", "restore", "nonsense", "--zone", ZONE], "aws-name-invalid"),
        (["snapshot", "restore", "imagenet/beton", "--zone", ZONE], "aws-not-found"),
        ([*CREATE[:3], "with space", *CREATE[4:]], "aws-name-invalid"),
        ([*CREATE[:7], "us-east-1x", *CREATE[8:], "--yes"], "aws-request-refused"),
    ],
)
def test_create_with_invalid_names_fails(aws: StrictAws, words: list[str], code: str) -> None:
    assert_fails(code, *words)


def test_volume_create_without_credentials_region_or_server_fails(
    aws: StrictAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert_fails("aws-unreachable", *CREATE)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert_fails("aws-credentials-missing", *CREATE)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert_fails("aws-region-missing", *CREATE)
