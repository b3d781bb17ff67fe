"""``launch`` commands against a strict AWS."""

import base64
import json
import signal
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import pytest

from rebar.aws.tags import VISIBILITY_SECONDS
from tests.aws.conftest import assert_fails, kill_at, run_cli, start_cli, wait_for
from tests.aws.strict_aws import ErrorResponse, StrictAws

JOB = ["--run", "g5-16", "--source", "s3://bucket/rebar.tar.gz", "--data", "s3://bucket/betons"]
JOB += ["--results", "s3://bucket/runs", "--max-hours", "8"]
ROLE = "arn:aws:iam::123456789012:role/rebar-scheduler"
RENT = ["--instance-profile", "rebar", "--scheduler-role", ROLE]
SINGLE = ["launch", "single", *JOB, *RENT, "--instance-type", "g5.xlarge"]


@pytest.fixture
def account(aws: StrictAws, s3: Any) -> StrictAws:
    """Return an account with quotas, an instance profile, and the data in S3."""
    for name in ("train", "val"):
        s3.put_object(Bucket="bucket", Key=f"betons/{name}.beton", Body=b"images")
    boto3.client("iam").create_instance_profile(InstanceProfileName="rebar")
    aws.quotas |= {"L-DB2E81BA": 64, "L-3819A6DF": 8, "L-417A185B": 0}
    return aws


def active_instances(ec2: Any) -> list[Any]:
    found = ec2.describe_instances(Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}])
    return [each for reservation in found["Reservations"] for each in reservation["Instances"]]


def schedules() -> list[Any]:
    scheduler = boto3.client("scheduler")
    return [scheduler.get_schedule(Name=each["Name"]) for each in scheduler.list_schedules()["Schedules"]]


def test_launch_without_yes_prints_the_cost_and_launches_nothing(account: StrictAws) -> None:
    output = run_cli(*SINGLE).out
    assert "launch a g5.xlarge (1 × A10G): $1.006/h" in output
    assert "at most $8.14" in output
    assert account.sent("RunInstances") == []
    assert "allowed" in run_cli(*SINGLE, "--check").out
    assert account.sent("RunInstances") == []


def test_launch_request_terminates_on_shutdown(account: StrictAws, ec2: Any) -> None:
    run_cli(*SINGLE, "--owner", "vision", "--yes", "--", "--epochs", "16")
    (sent,) = account.sent("RunInstances")
    assert sent["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert sent["MetadataOptions.HttpTokens"] == "required"
    assert sent["BlockDeviceMapping.1.Ebs.DeleteOnTermination"] == "true"
    assert sent["ImageId"] == "ami-0123456789abcdef0"
    assert sent["IamInstanceProfile.Name"] == "rebar"
    assert {sent["TagSpecification.1.ResourceType"], sent["TagSpecification.2.ResourceType"]} == {"instance", "volume"}
    assert sent["ClientToken"].startswith("rebar-")
    assert "InstanceMarketOptions.MarketType" not in sent
    script = base64.b64decode(sent["UserData"]).decode()
    assert "max_minutes=480" in script
    assert "--epochs 16" in script
    (machine,) = active_instances(ec2)
    tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
    assert (tags["rebar:run"], tags["rebar:role"], tags["rebar:owner"]) == ("g5-16", "train", "vision")
    assert tags["rebar:expires"].endswith("T23:59:59.000000Z")


def test_launch_schedules_the_termination(account: StrictAws, ec2: Any) -> None:
    run_cli(*SINGLE, "--yes")
    (machine,) = active_instances(ec2)
    (schedule,) = schedules()
    assert json.loads(schedule["Target"]["Input"]) == {"InstanceIds": [machine["InstanceId"]]}
    assert schedule["Target"]["Arn"] == "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances"
    assert schedule["Target"]["RoleArn"] == ROLE
    end = datetime.strptime(schedule["ScheduleExpression"], "at(%Y-%m-%dT%H:%M:%S)").replace(tzinfo=timezone.utc)
    assert timedelta(hours=8) < end - datetime.now(timezone.utc) < timedelta(hours=8, minutes=11)


def test_launch_terminates_an_instance_that_cannot_be_scheduled(account: StrictAws, ec2: Any) -> None:
    account.refuse["POST /schedules"] = ErrorResponse("AccessDeniedException", "you may not", 403)
    assert "AccessDeniedException" in assert_fails("aws-request-refused", *SINGLE, "--yes")
    assert active_instances(ec2) == []
    assert len(account.sent("TerminateInstances")) == 1


def test_launch_again_keeps_an_instance_that_cannot_be_scheduled(account: StrictAws, ec2: Any) -> None:
    run_cli(*SINGLE, "--yes")
    account.refuse["POST /schedules"] = ErrorResponse("AccessDeniedException", "you may not", 403)
    assert_fails("aws-request-refused", *SINGLE, "--yes")
    assert len(active_instances(ec2)) == 1


def test_launch_again_finds_the_first_instance(account: StrictAws, ec2: Any) -> None:
    run_cli(*SINGLE, "--yes")
    assert "exists already" in run_cli(*SINGLE, "--yes").out
    assert len(account.sent("RunInstances")) == 1
    assert_fails("aws-exists-differently", *SINGLE[:-1], "g5.2xlarge", "--yes")


def test_launch_completes_a_killed_call(account: StrictAws, ec2: Any) -> None:
    kill_at(account, "RunInstances", *SINGLE, "--yes")
    assert schedules() == []
    run_cli(*SINGLE, "--yes")
    assert len(active_instances(ec2)) == 1
    assert len(schedules()) == 1


def test_launch_after_the_end_launches_a_new_instance(account: StrictAws, ec2: Any) -> None:
    run_cli(*SINGLE, "--yes")
    (first,) = active_instances(ec2)
    ec2.terminate_instances(InstanceIds=[first["InstanceId"]])
    run_cli(*SINGLE, "--yes")
    (second,) = active_instances(ec2)
    assert first["InstanceId"] != second["InstanceId"]


def test_launch_after_ec2_forgot_the_instance_launches_a_new_one(
    account: StrictAws, ec2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_cli(*SINGLE, "--yes")
    (first,) = active_instances(ec2)
    account.backend.reservations.clear()
    monkeypatch.setitem(VISIBILITY_SECONDS, "instance", 0)
    run_cli(*SINGLE, "--yes")
    (second,) = active_instances(ec2)
    assert first["InstanceId"] != second["InstanceId"]


def test_launch_on_spot_is_one_time_and_terminates(account: StrictAws, ec2: Any) -> None:
    from tests.aws.test_cost import answer_with_prices

    account.refuse["DescribeSpotPriceHistory"] = answer_with_prices()
    assert "spot: $0.4012/h" in run_cli(*SINGLE, "--spot", "--yes").out
    (sent,) = account.sent("RunInstances")
    assert sent["InstanceMarketOptions.MarketType"] == "spot"
    assert sent["InstanceMarketOptions.SpotOptions.SpotInstanceType"] == "one-time"
    assert sent["InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior"] == "terminate"


def test_launch_checks_quota_type_and_disks_first(account: StrictAws) -> None:
    multi = ["launch", "multi", *JOB, *RENT, "--yes", "--instance-type"]
    assert "quota L-417A185B is 0" in assert_fails("aws-quota-exceeded", *multi, "p4d.24xlarge")
    run_cli(*multi, "g5.12xlarge")
    output = assert_fails("aws-quota-exceeded", *multi, "g5.12xlarge", "--run", "another")
    assert "quota L-DB2E81BA is 64, of which 48 are used" in output
    assert "launch multi" in assert_fails("instance-type-unsuitable", *SINGLE[:-1], "g5.12xlarge")
    assert "launch single" in assert_fails("instance-type-unsuitable", *multi, "g5.xlarge")
    assert "125 GB of NVMe of g4dn.xlarge" in assert_fails(
        "instance-type-unsuitable", *SINGLE[:-1], "g4dn.xlarge", "--data-gb", "120", "--yes"
    )
    assert_fails("instance-type-unknown", *SINGLE[:-1], "m5.large")
    assert "--root-gb 130" in assert_fails("instance-type-unsuitable", *SINGLE[:-1], "p3.2xlarge", "--data-gb", "70")
    assert_fails("instance-type-not-offered", *SINGLE, "--run", "third", "--zone", "us-east-1e")


def test_launch_checks_the_data_first(account: StrictAws, ec2: Any) -> None:
    assert "s3://bucket/other/train.beton" in assert_fails(
        "s3-not-found", *SINGLE, "--data", "s3://bucket/other", "--yes"
    )
    assert_fails("aws-not-found", *SINGLE, "--data", "snap-0123456789abcdef0", "--yes")
    assert_fails("s3-invalid-url", *SINGLE, "--data", "hf:imagenet-1k", "--yes")
    assert_fails("s3-invalid-url", *SINGLE, "--results", "/mnt/runs", "--yes")
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=400, VolumeType="gp3")["VolumeId"]
    snapshot = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    output = assert_fails("instance-type-unsuitable", *SINGLE, "--data", snapshot, "--yes")
    assert "430 GB of data does not fit on the 250 GB of NVMe of g5.xlarge" in output
    account.refuse["HEAD /bucket"] = ErrorResponse("403", "Forbidden", 403)
    assert "no permission to check" in run_cli(*SINGLE, "--yes").out
    assert len(account.sent("RunInstances")) == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--secret", "WANDB_API_KEY=0123456789abcdef0123456789abcdef"], "aws-option-invalid"),
        (["--", "--wandb-api-key=0123456789abcdef"], "secret-exposed"),
        (["--", "AKIAIOSFODNN7EXAMPLE"], "secret-exposed"),
        (["--source", "https://me:0123456789abcdef@example.com/rebar.git"], "secret-exposed"),
    ],
)
def test_launch_with_a_secret_in_user_data_fails(account: StrictAws, words: list[str], code: str) -> None:
    output = assert_fails(code, *SINGLE, "--yes", *words)
    assert "0123456789abcdef" not in output
    assert "AKIAIOSFODNN7EXAMPLE" not in output
    assert account.sent("RunInstances") == []


# ------------------------------------------------------------------------------------------ validate


def report(s3: Any, status: str) -> None:
    """Upload what the machine uploads at its end."""
    written = {"run/summary.txt": "all well\n", "run/training/checkpoints/last.pt": "weights"}
    for name, text in {**written, "machine.log": "a line", "exit-status": f"{status}\n"}.items():
        s3.put_object(Bucket="bucket", Key=f"runs/rebar/check-1/{name}", Body=text.encode())


def validate(out: Path) -> list[str | Path]:
    words = ["launch", "validate", "--run", "check-1", "--source", "s3://bucket/rebar.tar.gz", "--max-hours", "1"]
    return [*words, "--results", "s3://bucket/runs", "--data", "s3://bucket/betons", "--out", out, *RENT]


@pytest.mark.parametrize("status", ["0", "7"])
def test_validate_downloads_the_report_and_terminates_the_instance(
    account: StrictAws, ec2: Any, s3: Any, tmp_path: Path, status: str
) -> None:
    assert "nothing was changed" in run_cli(*validate(tmp_path / "report")).out
    account.watch = lambda request: report(s3, status) if request.action.startswith("POST /schedules") else None
    if status == "0":
        assert "is done" in run_cli(*validate(tmp_path / "report"), "--yes").out
    else:
        assert "exit status 7" in assert_fails("remote-run-failed", *validate(tmp_path / "report"), "--yes")
    assert (tmp_path / "report" / "run" / "summary.txt").read_text() == "all well\n"
    assert not list((tmp_path / "report").rglob("*.pt"))
    assert active_instances(ec2) == []
    (sent,) = account.sent("RunInstances")
    assert sent["InstanceType"] == "g4dn.xlarge"
    script = base64.b64decode(sent["UserData"]).decode()
    assert """command=(bash -c 'exec ./scripts/validation_run.sh "$DATA_FOLDER"')""" in script
    assert "data=s3://bucket/betons" in script


@pytest.mark.parametrize("out", ["file", "file/report", "/proc/report"])
def test_validate_launches_nothing_if_the_report_cannot_be_written(
    out: str, account: StrictAws, ec2: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    assert_fails("file-not-writable", *validate(tmp_path / out), "--yes")
    assert active_instances(ec2) == []
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_validate_with_images_from_the_hub(account: StrictAws, s3: Any, tmp_path: Path) -> None:
    account.watch = lambda request: report(s3, "0") if request.action.startswith("POST /schedules") else None
    plain = [word for word in validate(tmp_path) if word not in ("--data", "s3://bucket/betons")]
    assert "--data" in assert_fails("aws-option-invalid", *plain, "--yes")
    assert "all well" in run_cli(*plain, "--data", "hf:imagenet-1k", "--secret", "HF_TOKEN=/rebar/hf", "--yes").out
    (hub,) = account.sent("RunInstances")
    script = base64.b64decode(hub["UserData"]).decode()
    assert "exec ./scripts/validation_run.sh hf:imagenet-1k" in script
    assert "data=''" in script
    assert "secret_names=(HF_TOKEN=/rebar/hf)" in script


def test_validate_terminates_the_instance_on_sigterm(account: StrictAws, ec2: Any, tmp_path: Path) -> None:
    process = start_cli(*validate(tmp_path / "report"), "--yes")
    wait_for(
        lambda: any(
            request.action == "GET /bucket/runs/rebar/check-1/exit-status" for request in account.requests[-3:]
        ),
        60,
    )
    wait_for(lambda: len(schedules()) == 1, 30)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143, out
    assert active_instances(ec2) == []


def test_validate_completes_a_killed_call(account: StrictAws, ec2: Any, s3: Any, tmp_path: Path) -> None:
    kill_at(account, "RunInstances", *validate(tmp_path / "report"), "--yes")
    report(s3, "0")
    done = run_cli(*validate(tmp_path / "report"), "--yes")
    assert "nothing is launched" in done.out
    assert active_instances(ec2) == []
    assert len(account.sent("RunInstances")) == 1


def test_validate_fails_if_the_instance_disappears(account: StrictAws, ec2: Any, tmp_path: Path) -> None:
    def vanish(request: Any) -> None:
        if request.action.startswith("POST /schedules"):
            ec2.terminate_instances(InstanceIds=[machine["InstanceId"] for machine in active_instances(ec2)])

    account.watch = vanish
    assert "exit status unknown" in assert_fails("remote-run-failed", *validate(tmp_path / "report"), "--yes")
