"""``batch`` commands against a strict AWS."""

import json
import urllib.request
from typing import Any

import boto3
import botocore.session
import moto.batch.models
import pytest
from botocore.validate import ParamValidator
from moto.batch_simple.models import BatchSimpleBackend

from tests.aws.conftest import assert_fails, kill_at, run_cli
from tests.aws.strict_aws import StrictAws

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/rebar:1"
ROLE = "arn:aws:iam::123456789012:role/rebar-job"
SECRET_ARN = "arn:aws:secretsmanager:us-east-1:123456789012:secret:rebar/wandb-AbCdEf"
S3 = ["--data", "s3://bucket/betons", "--results", "s3://bucket/runs"]
REGISTER = ["batch", "register", "--run", "g5-16", "--image", IMAGE, *S3, "--job-role", ROLE, "--max-hours", "3"]
SINGLE = [*REGISTER, "--instance-type", "g5.12xlarge", "--attempts", "5"]
MULTI = [*REGISTER, "--instance-type", "p4d.24xlarge", "--nodes", "2"]
WRITE = [*REGISTER, "--role", "write", "--shards", "8", "--data", "s3://bucket/imagenet"]
SUBMIT = ["batch", "submit", "--run", "g5-16", "--queue"]


@pytest.fixture
def account(aws: StrictAws, monkeypatch: pytest.MonkeyPatch) -> StrictAws:
    """Add a queue ``spot`` and a queue ``on-demand``; moto starts no containers."""
    config = json.dumps({"batch": {"use_docker": False}}).encode()
    urllib.request.urlopen(
        urllib.request.Request(f"{aws.url}/moto-api/config", config, {"Content-Type": "application/json"}), timeout=30
    ).read()
    describe = moto.batch.models.JobDefinition.describe

    def describe_with_nodes(definition: Any) -> dict[str, Any]:
        output: dict[str, Any] = describe(definition)
        return output | ({"nodeProperties": definition.node_properties} if definition.node_properties else {})

    monkeypatch.setattr(moto.batch.models.JobDefinition, "describe", describe_with_nodes)
    for name, kind in (("spot", "SPOT"), ("on-demand", "EC2")):
        make_queue(name, kind)
    aws.requests.clear()
    return aws


def make_queue(name: str, kind: str, **more: Any) -> None:
    iam, ec2, batch = boto3.client("iam"), boto3.client("ec2"), boto3.client("batch")
    trust = json.dumps({"Version": "2012-10-17", "Statement": []})
    role = iam.create_role(RoleName=f"batch-{name}", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    iam.create_instance_profile(InstanceProfileName=f"batch-{name}")
    profile = iam.get_instance_profile(InstanceProfileName=f"batch-{name}")["InstanceProfile"]["Arn"]
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    resources = {
        "type": kind,
        "minvCpus": 0,
        "maxvCpus": 192,
        "instanceTypes": ["g5.12xlarge" if kind == "SPOT" else "p4d.24xlarge"],
        "subnets": [subnet],
        "securityGroupIds": [ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]],
        "instanceRole": profile,
        "bidPercentage": 100,
        "spotIamFleetRole": role,
        **more,
    }
    made = batch.create_compute_environment(
        computeEnvironmentName=name, type="MANAGED", serviceRole=role, computeResources=resources
    )
    order = [{"order": 1, "computeEnvironment": made["computeEnvironmentArn"]}]
    batch.create_job_queue(jobQueueName=name, priority=1, state="ENABLED", computeEnvironmentOrder=order)


def sent(aws: StrictAws, call: str) -> list[dict[str, Any]]:
    """Return the bodies of the requests to Batch, checked against botocore's model of the service."""
    bodies = [json.loads(each.body) for each in aws.requests if each.action == f"POST /v1/{call.lower()}"]
    model = botocore.session.get_session().get_service_model("batch")
    for body in bodies:
        report = ParamValidator().validate(body, model.operation_model(call[0].upper() + call[1:]).input_shape)
        assert not report.has_errors(), report.generate_report()
    return bodies


def test_register_without_yes_prints_the_cost_and_registers_nothing(account: StrictAws) -> None:
    output = run_cli(*SINGLE).out
    assert "register the job definition rebar-g5-16-train" in output
    assert "at most 5 attempts of 3 h on g5.12xlarge: at most $85.08" in output
    assert "nothing was changed" in output
    assert "not checked: AWS has no dry run for it" in run_cli(*SINGLE, "--check").out
    assert sent(account, "registerJobDefinition") == []


def test_register_single_node(account: StrictAws) -> None:
    secret = f"WANDB_API_KEY={SECRET_ARN}"
    more = ["--owner", "vision", "--execution-role", ROLE, "--secret", secret, "--scratch", "/mnt/nvme"]
    run_cli(*SINGLE, *more, "--yes", "--", "--epochs", "16")
    (request,) = sent(account, "registerJobDefinition")
    assert request["type"] == "container"
    container = request["containerProperties"]
    assert container["command"][:3] == ["/opt/rebar/scripts/train_job.sh", "--config-file", "rn50_configs/g5_4gpu.yaml"]
    assert container["command"][3:] == ["--epochs", "16"]
    needs = {each["type"]: int(each["value"]) for each in container["resourceRequirements"]}
    assert needs == {"GPU": 4, "VCPU": 48, "MEMORY": 192 * 1024 * 9 // 10}
    environment = {each["name"]: each["value"] for each in container["environment"]}
    assert environment["RUN_URL"] == "s3://bucket/runs/rebar/g5-16"
    assert environment["DATA"] == "s3://bucket/betons"
    assert environment["DATA_FOLDER"] == "/scratch/rebar-data"
    assert container["secrets"] == [{"name": "WANDB_API_KEY", "valueFrom": SECRET_ARN}]
    assert container["volumes"][0]["host"]["sourcePath"] == "/mnt/nvme"
    assert request["retryStrategy"] == {
        "attempts": 5,
        "evaluateOnExit": [
            {"onStatusReason": "Host EC2*", "action": "RETRY"},
            {"onExitCode": "75", "action": "RETRY"},
            {"onReason": "*", "action": "EXIT"},
        ],
    }
    assert request["timeout"] == {"attemptDurationSeconds": 3 * 3600}
    assert request["propagateTags"] is True
    assert {"rebar:project": "rebar", "rebar:run": "g5-16", "rebar:role": "train"}.items() <= request["tags"].items()
    assert request["tags"]["rebar:owner"] == "vision"


def test_register_multi_node(account: StrictAws) -> None:
    assert "2 × p4d.24xlarge: at most $131.75" in run_cli(*MULTI, "--yes").out
    (request,) = sent(account, "registerJobDefinition")
    assert request["type"] == "multinode"
    nodes = request["nodeProperties"]
    assert (nodes["numNodes"], nodes["mainNode"]) == (2, 0)
    (every_node,) = nodes["nodeRangeProperties"]
    assert every_node["targetNodes"] == "0:"
    assert every_node["container"]["instanceType"] == "p4d.24xlarge"
    assert every_node["container"]["command"][0].endswith("train_job.sh")
    assert "rn50_configs/p4d_8gpu.yaml" in every_node["container"]["command"]


@pytest.mark.parametrize("words", [SINGLE, MULTI, WRITE], ids=["single", "multi", "write"])
def test_register_again_does_not_register_an_unchanged_definition(account: StrictAws, words: list[str]) -> None:
    run_cli(*words, "--yes")
    assert "is unchanged" in run_cli(*words, "--yes").out
    assert len(sent(account, "registerJobDefinition")) == 1
    assert "register a new revision" in run_cli(*words, "--max-hours", "4", "--yes").out
    assert len(sent(account, "registerJobDefinition")) == 2
    assert "is unchanged" in run_cli(*words, "--max-hours", "4", "--yes").out


def test_definitions_without_our_tags_are_not_used(account: StrictAws) -> None:
    boto3.client("batch").register_job_definition(
        jobDefinitionName="rebar-g5-16-train",
        type="container",
        containerProperties={"image": "theirs", "vcpus": 1, "memory": 128},
    )
    account.requests.clear()
    assert_fails("aws-not-ours", *SINGLE, "--yes")
    assert_fails("aws-not-ours", *SUBMIT, "spot", "--yes")
    assert sent(account, "registerJobDefinition") == []


def test_submit_sends_a_job_of_the_definition(account: StrictAws) -> None:
    assert_fails("aws-not-found", *SUBMIT, "spot", "--yes")
    run_cli(*SINGLE, "--yes")
    assert "(revision 1) to the queue spot (SPOT)" in run_cli(*SUBMIT, "spot").out
    assert sent(account, "submitJob") == []
    run_cli(*SUBMIT, "spot", "--yes")
    (request,) = sent(account, "submitJob")
    assert request["jobName"] == "rebar-g5-16-train"
    assert request["jobDefinition"].endswith("job-definition/rebar-g5-16-train:1")
    assert request["tags"]["rebar:run"] == "g5-16"
    assert "arrayProperties" not in request


def hold_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep jobs waiting; moto would end them at once."""

    def hold(self: Any, include_start_attempt: bool, job: Any) -> None:
        job.status = "RUNNABLE"

    monkeypatch.setattr(BatchSimpleBackend, "_mark_job_as_finished", hold)


def test_submit_again_finds_the_waiting_job(account: StrictAws, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_jobs(monkeypatch)
    run_cli(*SINGLE, "--yes")
    kill_at(account, "POST /v1/submitjob", *SUBMIT, "spot", "--yes")
    assert "exists already: rebar-g5-16-train, RUNNABLE" in run_cli(*SUBMIT, "spot", "--yes").out
    assert len(sent(account, "submitJob")) == 1
    batch = boto3.client("batch")
    definition = batch.describe_job_definitions()["jobDefinitions"][0]["jobDefinitionArn"]
    batch.submit_job(jobName="rebar-g5-16-train", jobQueue="spot", jobDefinition=definition)
    assert_fails("aws-ambiguous", *SUBMIT, "spot", "--yes")


def test_register_and_submit_an_array_of_shards(account: StrictAws, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_jobs(monkeypatch)
    assert "8 tasks, each 3 h" in run_cli(*WRITE, "--yes", "--", "--split", "train").out
    (request,) = sent(account, "registerJobDefinition")
    container = request["containerProperties"]
    assert container["command"][0] == "/opt/rebar/scripts/write_job.sh"
    assert container["command"][1:] == ["--data-dir", "s3://bucket/imagenet", "--split", "train"]
    assert {each["type"] for each in container["resourceRequirements"]} == {"VCPU", "MEMORY"}
    assert {"name": "SHARDS", "value": "8"} in container["environment"]
    run_cli(*SUBMIT, "spot", "--role", "write", "--yes")
    (job,) = sent(account, "submitJob")
    assert job["arrayProperties"] == {"size": 8}


def test_submit_to_unsuitable_queues_fails(account: StrictAws) -> None:
    run_cli(*MULTI, "--yes")
    assert_fails("job-queue-unsuitable", *SUBMIT, "spot", "--yes")
    assert_fails("aws-not-found", *SUBMIT, "none", "--yes")
    make_queue("idle", "EC2", minvCpus=96)
    assert "keeps 96 vCPUs running" in run_cli(*SUBMIT, "idle").out
    boto3.client("batch").update_job_queue(jobQueue="on-demand", state="DISABLED")
    assert_fails("job-queue-unsuitable", *SUBMIT, "on-demand", "--yes")
    assert sent(account, "submitJob") == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--secret", "WANDB_API_KEY=0123456789abcdef0123456789abcdef"], "aws-option-invalid"),
        (["--secret", f"WANDB_API_KEY={SECRET_ARN}"], "aws-option-invalid"),
        (["--", "--wandb-api-key=0123456789abcdef"], "secret-exposed"),
        (["--image", "https://me:0123456789abcdef@example.com/rebar"], "secret-exposed"),
        (["--attempts", "11"], "aws-option-invalid"),
        (["--data", "/mnt/betons"], "s3-invalid-url"),
        (["--results", "https://bucket.s3.amazonaws.com/runs"], "s3-invalid-url"),
        (["--max-hours", "0.01"], "aws-option-invalid"),
        (["--run", "g5.16"], "aws-name-invalid"),
        (["--nodes", "2", "--shards", "2"], "aws-option-invalid"),
        (["--instance-type", "m5.large"], "instance-type-unknown"),
    ],
)
def test_register_with_invalid_options_fails(account: StrictAws, words: list[str], code: str) -> None:
    output = assert_fails(code, *SINGLE, "--yes", *words)
    assert "0123456789abcdef" not in output
    assert sent(account, "registerJobDefinition") == []
