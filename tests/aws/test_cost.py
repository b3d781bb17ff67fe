"""``cost`` and ``budget`` commands; the table of instance types against EC2's recorded answers."""

import gzip
import json
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import moto
import pytest

from rebar.aws.instances import CPU_TYPES, PRICES, TYPES, CpuInstanceType, InstanceType
from tests.aws.conftest import ZONE, assert_fails, run_cli, run_instance
from tests.aws.strict_aws import ACCOUNT, CustomResponse, StrictAws
from tests.conftest import REPOSITORY

RECORDED = Path(moto.__file__).parent / "ec2/resources/instance_types.json.gz"


@pytest.fixture(scope="module")
def recorded() -> Any:
    """Return EC2's answers to DescribeInstanceTypes, as recorded in moto."""
    with gzip.open(RECORDED) as file:
        return json.load(file)


@pytest.mark.parametrize("machine", [each for each in TYPES if each.family != "p3"], ids=lambda machine: machine.name)
def test_instance_types_match_ec2(recorded: Any, machine: InstanceType) -> None:
    output = recorded[machine.name]
    (gpu,) = output["GpuInfo"]["Gpus"]
    storage = output["InstanceStorageInfo"]
    assert (gpu["Name"], gpu["Count"]) == (machine.gpu, machine.gpus)
    assert 0.9 < gpu["MemoryInfo"]["SizeInMiB"] / 1024 / machine.gpu_memory_gib <= 1
    assert output["VCpuInfo"]["DefaultVCpus"] == machine.vcpus
    assert output["MemoryInfo"]["SizeInMiB"] == 1024 * machine.memory_gib
    assert storage["TotalSizeInGB"] == machine.nvme_gb
    assert sum(disk["Count"] for disk in storage["Disks"]) == machine.nvme_disks


@pytest.mark.parametrize("machine", CPU_TYPES, ids=lambda machine: machine.name)
def test_cpu_instance_types_match_ec2(recorded: Any, machine: CpuInstanceType) -> None:
    output = recorded[machine.name]
    assert "GpuInfo" not in output
    assert output["VCpuInfo"]["DefaultVCpus"] == machine.vcpus
    assert output["MemoryInfo"]["SizeInMiB"] == 1024 * machine.memory_gib


def test_every_machine_in_docs_and_recipes_is_in_the_table() -> None:
    pages = [*REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("*.md"), *REPOSITORY.glob("rn50_configs/*.yaml")]
    pages += [*REPOSITORY.glob("scripts/*.sh"), *REPOSITORY.glob("notebooks/*.ipynb")]
    named = {name for page in pages for name in re.findall(r"\b[a-z]\d\w*\.(?:\d*xlarge|metal)\b", page.read_text())}
    assert len(named) > 20
    assert named - set(PRICES) == set()


@pytest.mark.parametrize("machine", TYPES, ids=lambda machine: machine.name)
def test_every_instance_type_has_a_config(machine: InstanceType) -> None:
    text = (REPOSITORY / "rn50_configs" / machine.config).read_text()
    assert f"world_size: {machine.gpus}" in text


def test_estimate_of_a_published_time_is_not_scaled(aws: StrictAws) -> None:
    output = run_cli("cost", "estimate", "--instance-type", "p4d.24xlarge", "--epochs", "88").out
    assert "1.29 h: measured by ffcv-imagenet" in output  # 77.2 minutes
    assert "$33.74 for 1.54 h" in output
    assert aws.requests == []


def test_estimate_of_other_machines_is_scaled(aws: StrictAws) -> None:
    output = run_cli("cost", "estimate", "--instance-type", "g5.xlarge").out
    assert "5.15 h: scaled by GPU speed" in output
    assert "not measured" in output


def test_estimate_for_80_gb_a100s_is_scaled(aws: StrictAws) -> None:
    output = run_cli("cost", "estimate", "--instance-type", "p4de.24xlarge").out
    assert "0.19 h: scaled by GPU speed" in output  # 14.9 minutes * 1555 / 2039


def test_estimate_of_any_number_of_epochs_uses_the_nearest_published_time(aws: StrictAws) -> None:
    output = run_cli("cost", "estimate", "--instance-type", "p4d.24xlarge", "--epochs", "90").out
    assert "1.32 h: scaled by epochs" in output  # 77.2 minutes for 88 epochs
    assert "88 epochs on 8 A100" in output


def test_estimate_from_a_measured_throughput(aws: StrictAws) -> None:
    words = ["cost", "estimate", "--instance-type", "g5.xlarge", "--epochs", "18", "--price", "2"]
    output = run_cli(*words, "--images-per-second", "6405.835").out
    assert "1.00 h: from your 6406 images/s" in output
    assert "$2.50 for 1.25 h" in output


def test_estimate_uses_the_spot_price(aws: StrictAws) -> None:
    aws.refuse["DescribeSpotPriceHistory"] = answer_with_prices()
    output = run_cli("cost", "estimate", "--instance-type", "g5.xlarge", "--spot").out
    assert "$0.4012/h: current spot price in us-east-1b" in output


def answer_with_prices() -> CustomResponse:
    items = "".join(
        f"<item><instanceType>g5.xlarge</instanceType><productDescription>Linux/UNIX</productDescription>"
        f"<spotPrice>{price}</spotPrice><availabilityZone>{zone}</availabilityZone></item>"
        for zone, price in (("us-east-1a", "0.501200"), ("us-east-1b", "0.401200"))
    )
    return CustomResponse(
        '<DescribeSpotPriceHistoryResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15"><spotPriceHistorySet>'
        f"{items}</spotPriceHistorySet></DescribeSpotPriceHistoryResponse>"
    )


# ------------------------------------------------------------------------------------------ sweep


CREATE = ["volume", "create", "--role", "beton", "--zone", ZONE, "--size", "100", "--yes", "--run"]


def set_expired_tag(ec2: Any, resource: str) -> None:
    past = (datetime.now(timezone.utc) - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    ec2.create_tags(Resources=[resource], Tags=[{"Key": "rebar:expires", "Value": past}])


def tag_as_rebar(ec2: Any, resource: str, run: str = "g5-16") -> str:
    named = {"rebar:project": "rebar", "rebar:run": run, "rebar:role": "train"}
    ec2.create_tags(Resources=[resource], Tags=[{"Key": key, "Value": value} for key, value in named.items()])
    return resource


def test_sweep_knows_the_price_of_instances_that_write_data(ec2: Any) -> None:
    tag_as_rebar(ec2, run_instance(ec2, kind="t3.2xlarge"), run="write-1")
    output = run_cli("cost", "sweep").out
    assert "1 resource, about $7.99/day" in output  # 24 * 0.3328
    assert "unknown" not in output


def test_sweep_lists_the_projects_resources(ec2: Any, instance: str) -> None:
    run_cli(*CREATE, "imagenet")
    tag_as_rebar(ec2, instance)
    ec2.create_volume(AvailabilityZone=ZONE, Size=500, VolumeType="gp3")  # without tags
    output = run_cli("cost", "sweep").out
    assert "g5.xlarge" in output
    assert "$24.14/day" in output
    assert "imagenet/beton" in output
    assert "detached" in output
    assert "2 resources, about $24.41/day" in output
    assert "nothing was changed" not in output


def test_sweep_ends_expired_resources_only(aws: StrictAws, ec2: Any, instance: str) -> None:
    set_expired_tag(ec2, tag_as_rebar(ec2, instance))
    run_cli(*CREATE, "old")
    run_cli(*CREATE, "new", "--expires-days", "1")
    (old,) = ec2.describe_volumes(Filters=[{"Name": "tag:rebar:run", "Values": ["old"]}])["Volumes"]
    set_expired_tag(ec2, old["VolumeId"])
    snapshot = tag_as_rebar(ec2, ec2.create_snapshot(VolumeId=old["VolumeId"])["SnapshotId"], "old")
    set_expired_tag(ec2, snapshot)

    planned = run_cli("cost", "sweep", "--end-expired").out
    assert f"terminate {instance}" in planned
    assert aws.sent("TerminateInstances") == []

    done = run_cli("cost", "sweep", "--end-expired", "--yes").out
    assert f"terminated {instance}" in done
    assert f"kept: {old['VolumeId']} has no verified snapshot" in done
    assert [sent["InstanceId.1"] for sent in aws.sent("TerminateInstances")] == [instance]
    assert aws.sent("DeleteVolume") == []
    assert aws.sent("DeleteSnapshot") == []


def test_sweep_deletes_an_expired_copy_of_a_verified_snapshot(aws: StrictAws, ec2: Any) -> None:
    run_cli(*CREATE, "imagenet")
    (volume,) = ec2.describe_volumes()["Volumes"]
    snapshot = tag_as_rebar(ec2, ec2.create_snapshot(VolumeId=volume["VolumeId"])["SnapshotId"], "imagenet")
    aws._snapshots[snapshot] = 0
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    ec2.create_tags(Resources=[snapshot], Tags=[{"Key": "rebar:verified", "Value": now}])
    run_cli("snapshot", "restore", snapshot, "--zone", ZONE, "--run", "g5-16", "--role", "copy", "--yes")
    (copy,) = ec2.describe_volumes(Filters=[{"Name": "tag:rebar:role", "Values": ["copy"]}])["Volumes"]
    set_expired_tag(ec2, copy["VolumeId"])
    run_cli("cost", "sweep", "--end-expired", "--yes")
    assert [sent["VolumeId"] for sent in aws.sent("DeleteVolume")] == [copy["VolumeId"]]


# ------------------------------------------------------------------------------------------ budget


def test_budget_is_created_once(aws: StrictAws) -> None:
    words = ["budget", "create", "--limit", "100", "--email", "me@example.com"]
    assert "nothing was changed" in run_cli(*words).out
    run_cli(*words, "--yes")
    assert "exists already: $100 a month" in run_cli(*words, "--yes").out
    assert_fails("aws-exists-differently", *words[:3], "200", *words[4:], "--yes")
    budgets = boto3.client("budgets")
    (budget,) = budgets.describe_budgets(AccountId=ACCOUNT)["Budgets"]
    assert (budget["BudgetName"], budget["BudgetLimit"]["Amount"], budget["TimeUnit"]) == (
        "rebar-rebar",
        "100",
        "MONTHLY",
    )
    output = budgets.describe_notifications_for_budget(AccountId=ACCOUNT, BudgetName="rebar-rebar")["Notifications"]
    assert [each["Threshold"] for each in output] == [50.0, 80.0, 100.0, 100.0]


def test_budget_with_an_invalid_address_fails(aws: StrictAws) -> None:
    assert "is not an e-mail address" in run_cli("budget", "create", "--limit", "1", "--email", "me", expect=2).err
