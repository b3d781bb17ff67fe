"""``sagemaker submit`` against a strict AWS."""

import re
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.validate import ParamValidator

from tests.aws.conftest import assert_fails, kill_at, run_cli
from tests.aws.strict_aws import StrictAws

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/rebar:1"
ROLE = "arn:aws:iam::123456789012:role/rebar-job"
SUBMIT = ["sagemaker", "submit", "--run", "g5-16", "--image", IMAGE, "--data", "s3://bucket/betons"]
SUBMIT += ["--results", "s3://bucket/runs", "--role-arn", ROLE, "--max-hours", "3", "--instance-type", "g5.12xlarge"]


def sent(aws: StrictAws) -> list[dict[str, Any]]:
    """Return the requests for training jobs, checked against botocore's model of the service."""
    bodies = [each.parameters for each in aws.requests if each.action == "CreateTrainingJob"]
    model = botocore.session.get_session().get_service_model("sagemaker")
    for body in bodies:
        shape = model.operation_model("CreateTrainingJob").input_shape
        assert not (report := ParamValidator().validate(body, shape)).has_errors(), report.generate_report()
        assert re.fullmatch(model.shape_for("TrainingJobName").metadata["pattern"], body["TrainingJobName"])
        assert body["ResourceConfig"]["InstanceType"] in model.shape_for("TrainingInstanceType").enum
        assert body["AlgorithmSpecification"]["TrainingInputMode"] in model.shape_for("TrainingInputMode").enum
    return bodies  # type: ignore[return-value]


def set_status(name: str, status: str) -> None:
    """Set the status of a job; moto completes jobs at once."""
    from moto.backends import get_backend

    get_backend("sagemaker")["123456789012"]["us-east-1"].training_jobs[name].training_job_status = status


def test_submit_without_yes_prints_the_cost_and_submits_nothing(aws: StrictAws) -> None:
    output = run_cli(*SUBMIT, "--spot").out
    assert "submit rebar-g5-16-1" in output
    assert "on ml.g5.12xlarge, on managed spot" in output
    assert "more than EC2's $5.67" in output
    assert "nothing was changed" in output
    assert sent(aws) == []


def test_submit_on_managed_spot(aws: StrictAws) -> None:
    run_cli(*SUBMIT, "--spot", "--owner", "vision", "--yes", "--", "--epochs", "16")
    (request,) = sent(aws)
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 10_800, "MaxWaitTimeInSeconds": 21_600}
    place = "s3://bucket/runs/rebar/g5-16"
    assert request["CheckpointConfig"] == {"S3Uri": f"{place}/run", "LocalPath": "/opt/ml/checkpoints"}
    (channel,) = request["InputDataConfig"]
    assert channel["DataSource"]["S3DataSource"] == {
        "S3DataType": "S3Prefix",
        "S3Uri": "s3://bucket/betons/",
        "S3DataDistributionType": "FullyReplicated",
    }
    assert channel["InputMode"] == "File"
    assert request["OutputDataConfig"]["S3OutputPath"].startswith(place)
    assert request["ResourceConfig"] == {"InstanceType": "ml.g5.12xlarge", "InstanceCount": 1, "VolumeSizeInGB": 120}
    algorithm = request["AlgorithmSpecification"]
    assert algorithm["ContainerEntrypoint"] == ["/opt/rebar/scripts/train_job.sh"]
    assert algorithm["ContainerArguments"] == ["--config-file", "rn50_configs/g5_4gpu.yaml", "--epochs", "16"]
    assert request["Environment"] == {
        "RUN_FOLDER": "/opt/ml/checkpoints",
        "DATA_FOLDER": "/opt/ml/input/data/training",
    }
    tags = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
    assert (tags["rebar:project"], tags["rebar:run"], tags["rebar:owner"]) == ("rebar", "g5-16", "vision")


def test_submit_several_nodes_on_demand_with_fast_file(aws: StrictAws) -> None:
    output = run_cli(*SUBMIT, "--nodes", "2", "--input-mode", "FastFile", "--yes").out
    assert "slow with FastFile" in output
    (request,) = sent(aws)
    assert request["ResourceConfig"]["InstanceCount"] == 2
    assert request["EnableManagedSpotTraining"] is False
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 10_800}
    assert request["InputDataConfig"][0]["InputMode"] == "FastFile"


def test_submit_again_finds_the_job_in_progress(aws: StrictAws) -> None:
    kill_at(aws, "CreateTrainingJob", *SUBMIT, "--yes")
    set_status("rebar-g5-16-1", "InProgress")
    assert "rebar-g5-16-1 exists already: InProgress" in run_cli(*SUBMIT, "--yes").out
    assert len(sent(aws)) == 1


@pytest.mark.parametrize("status", ["Failed", "Stopped", "Completed"])
def test_submit_after_the_end_resumes_from_the_checkpoint(aws: StrictAws, status: str) -> None:
    run_cli(*SUBMIT, "--yes")
    set_status("rebar-g5-16-1", status)
    output = run_cli(*SUBMIT, "--yes").out
    assert "resuming from the run's checkpoint" in output
    assert ("has completed" in output) == (status == "Completed")
    first, second = sent(aws)
    assert second["TrainingJobName"] == "rebar-g5-16-2"
    assert first["CheckpointConfig"] == second["CheckpointConfig"]


def test_jobs_without_our_tags_are_not_used(aws: StrictAws) -> None:
    boto3.client("sagemaker").create_training_job(
        TrainingJobName="rebar-g5-16-1",
        RoleArn=ROLE,
        AlgorithmSpecification={"TrainingImage": IMAGE, "TrainingInputMode": "File"},
        OutputDataConfig={"S3OutputPath": "s3://theirs"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    aws.requests.clear()
    assert_fails("aws-not-ours", *SUBMIT, "--yes")
    assert sent(aws) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--instance-type", "g4dn.metal"], "instance-type-not-offered"),
        (["--run", "g5_16"], "aws-name-invalid"),
        (["--run", "r" * 64], "aws-name-invalid"),
        (["--spot", "--max-wait-hours", "1"], "aws-option-invalid"),
        (["--data", "/mnt/betons"], "s3-invalid-url"),
        (["--results", "https://bucket.s3.amazonaws.com/runs"], "s3-invalid-url"),
        (["--instance-type", "g4dn.xlarge", "--data-gb", "120"], "instance-type-unsuitable"),
        (["--", "--note", "x" * 257], "aws-option-invalid"),
        (["--", "--wandb-api-key=0123456789abcdef"], "secret-exposed"),
    ],
)
def test_submit_with_invalid_options_fails(aws: StrictAws, words: list[str], code: str) -> None:
    output = assert_fails(code, *SUBMIT, "--yes", *words)
    assert "0123456789abcdef" not in output
    assert sent(aws) == []
