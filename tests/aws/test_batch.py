"""Job definitions and jobs of AWS Batch through the command line, against a strict AWS."""

import json
import urllib.request
from typing import Any

import botocore.session
import moto.batch.models
import pytest
from botocore.validate import ParamValidator
from moto.batch_simple.models import BatchSimpleBackend

from tests.aws.conftest import kill_at, run_cli, run_failing
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
    """With a queue on spot, ``spot``, and one on demand, ``on-demand``; moto starts no containers."""
    config = json.dumps({"batch": {"use_docker": False}}).encode()
    urllib.request.urlopen(
        urllib.request.Request(f"{aws.url}/moto-api/config", config, {"Content-Type": "application/json"}), timeout=30
    ).read()
    describe = moto.batch.models.JobDefinition.describe

    def as_aws_does(definition: Any) -> dict[str, Any]:
        told: dict[str, Any] = describe(definition)
        return told | ({"nodeProperties": definition.node_properties} if definition.node_properties else {})

    monkeypatch.setattr(moto.batch.models.JobDefinition, "describe", as_aws_does)
    for name, kind in (("spot", "SPOT"), ("on-demand", "EC2")):
        make_queue(name, kind)
    aws.requests.clear()
    return aws


def make_queue(name: str, kind: str, **more: Any) -> None:
    import boto3

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
    """The bodies of the requests to Batch, which AWS's own description of the interface accepts."""
    bodies = [json.loads(each.body) for each in aws.requests if each.action == f"POST /v1/{call.lower()}"]
    model = botocore.session.get_session().get_service_model("batch")
    for body in bodies:
        report = ParamValidator().validate(body, model.operation_model(call[0].upper() + call[1:]).input_shape)
        assert not report.has_errors(), report.generate_report()
    return bodies


def test_the_plan_says_what_it_costs_and_registers_nothing(account: StrictAws) -> None:
    told = run_cli(*SINGLE).out
    assert "register the job definition rebar-g5-16-train" in told
    assert "at most 5 attempts of 3 h on g5.12xlarge: at most $85.08" in told
    assert "nothing was changed" in told
    assert "AWS has no dry run for it" in run_cli(*SINGLE, "--check").out
    assert sent(account, "registerJobDefinition") == []


def test_one_node_on_spot(account: StrictAws) -> None:
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
    assert environment["RUN_PLACE"] == "s3://bucket/runs/rebar/g5-16"
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


def test_several_nodes_on_demand(account: StrictAws) -> None:
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
def test_the_same_is_not_registered_again(account: StrictAws, words: list[str]) -> None:
    run_cli(*words, "--yes")
    assert "is the same already" in run_cli(*words, "--yes").out
    assert len(sent(account, "registerJobDefinition")) == 1
    assert "register a new revision" in run_cli(*words, "--max-hours", "4", "--yes").out
    assert len(sent(account, "registerJobDefinition")) == 2
    assert "is the same already" in run_cli(*words, "--max-hours", "4", "--yes").out


def test_somebody_elses_definition_is_left_alone(account: StrictAws) -> None:
    import boto3

    boto3.client("batch").register_job_definition(
        jobDefinitionName="rebar-g5-16-train",
        type="container",
        containerProperties={"image": "theirs", "vcpus": 1, "memory": 128},
    )
    account.requests.clear()
    assert "does not carry Rebar's tags" in run_failing(*SINGLE, "--yes")
    assert "does not carry Rebar's tags" in run_failing(*SUBMIT, "spot", "--yes")
    assert sent(account, "registerJobDefinition") == []


def test_submitted_once(account: StrictAws) -> None:
    assert "batch register first" in run_failing(*SUBMIT, "spot", "--yes")
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
    """Jobs wait as they do on AWS, which has no machine at once; moto ends them right away."""

    def hold(self: Any, include_start_attempt: bool, job: Any) -> None:
        job.status = "RUNNABLE"

    monkeypatch.setattr(BatchSimpleBackend, "_mark_job_as_finished", hold)


def test_a_job_that_waits_or_runs_is_found(account: StrictAws, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_jobs(monkeypatch)
    run_cli(*SINGLE, "--yes")
    kill_at(account, "POST /v1/submitjob", *SUBMIT, "spot", "--yes")
    assert "exists already: rebar-g5-16-train, RUNNABLE" in run_cli(*SUBMIT, "spot", "--yes").out
    assert len(sent(account, "submitJob")) == 1
    import boto3

    batch = boto3.client("batch")
    definition = batch.describe_job_definitions()["jobDefinitions"][0]["jobDefinitionArn"]
    batch.submit_job(jobName="rebar-g5-16-train", jobQueue="spot", jobDefinition=definition)
    assert "several jobs are called" in run_failing(*SUBMIT, "spot", "--yes")


def test_an_array_of_parts(account: StrictAws, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_queues_that_do_not_suit(account: StrictAws) -> None:
    run_cli(*MULTI, "--yes")
    assert "several nodes on demand (EC2) only" in run_failing(*SUBMIT, "spot", "--yes")
    assert "there is no job queue none" in run_failing(*SUBMIT, "none", "--yes")
    make_queue("idle", "EC2", minvCpus=96)
    assert "keeps 96 vCPUs running" in run_cli(*SUBMIT, "idle").out
    import boto3

    boto3.client("batch").update_job_queue(jobQueue="on-demand", state="DISABLED")
    assert "is DISABLED" in run_failing(*SUBMIT, "on-demand", "--yes")
    assert sent(account, "submitJob") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--secret", "WANDB_API_KEY=0123456789abcdef0123456789abcdef"], "never the value"),
        (["--secret", f"WANDB_API_KEY={SECRET_ARN}"], "needs --execution-role"),
        (["--", "--wandb-api-key=0123456789abcdef"], "looks like a secret"),
        (["--image", "https://me:0123456789abcdef@example.com/rebar"], "looks like a secret"),
        (["--attempts", "11"], "from 1 to 10"),
        (["--max-hours", "0.01"], "at least a minute"),
        (["--run", "g5.16"], "choose another --run"),
        (["--nodes", "2", "--shards", "2"], "--shards needs no GPU"),
        (["--results", "bucket/runs"], "--results must be an s3:// folder"),
        (["--instance-type", "m5.large"], "not in Rebar's table"),
    ],
)
def test_what_cannot_be_is_told(account: StrictAws, words: list[str], message: str) -> None:
    told = run_failing(*SINGLE, "--yes", *words)
    assert message in told
    assert "0123456789abcdef" not in told
    assert sent(account, "registerJobDefinition") == []
