"""``sagemaker submit``: a run has one training job at a time, and the next job resumes from its checkpoint."""

import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from rebar.aws.commands import Aws, Step, argument, call, command, paginate, positive
from rebar.aws.instances import instance_type, require_nvme
from rebar.aws.jobs import JOB, JOB_EXAMPLE, ROLE, TRAIN_JOB, training_arguments
from rebar.aws.tags import Identity, Resource, as_tag_list, identity_of, require_project_tags, run_prefix
from rebar.storage.aws import AwsError
from rebar.storage.s3 import S3Prefix

RUN_FOLDER = "/opt/ml/checkpoints"
"""SageMaker synchronizes this folder with S3, also across spot interruptions."""
DATA_FOLDER = "/opt/ml/input/data/training"
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
MAX_NAME, MAX_ARGUMENTS, MAX_ARGUMENT = 63, 99, 256
MAX_JOBS = 50
IN_PROGRESS = ("InProgress", "Stopping")


def _training_job(options: Namespace, identity: Identity, name: str) -> dict[str, Any]:
    """Return the parameters of CreateTrainingJob for the options of ``sagemaker submit``."""
    machine, run = instance_type(options.instance_type), run_prefix(options)
    data, mode, arguments = S3Prefix.parse(options.data, "--data"), options.input_mode, training_arguments(options)
    if machine.nvme_gb:
        require_nvme(machine, options.data_gb)
    wait_hours = 2 * options.max_hours if options.max_wait_hours is None else options.max_wait_hours
    if options.max_hours <= 0 or wait_hours < options.max_hours:
        text = "--max-hours must be positive, --max-wait-hours at least --max-hours."
        raise AwsError(text, code="aws-option-invalid")
    if len(arguments) > MAX_ARGUMENTS or any(len(word) > MAX_ARGUMENT for word in arguments):
        text = f"SageMaker allows {MAX_ARGUMENTS} arguments of {MAX_ARGUMENT} characters. Use a --config file."
        raise AwsError(text, code="aws-option-invalid")
    stop = {"MaxRuntimeInSeconds": round(options.max_hours * 3600)}
    if options.spot:
        stop["MaxWaitTimeInSeconds"] = round(wait_hours * 3600)
    source = {"S3DataType": "S3Prefix", "S3Uri": f"{data}/", "S3DataDistributionType": "FullyReplicated"}
    return {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": options.image,
            "TrainingInputMode": mode,
            "ContainerEntrypoint": [TRAIN_JOB],
            "ContainerArguments": arguments,
        },
        "RoleArn": options.role_arn,
        "InputDataConfig": [
            {"ChannelName": "training", "DataSource": {"S3DataSource": source}, "InputMode": mode},
        ],
        "OutputDataConfig": {"S3OutputPath": f"{run}/output"},
        "ResourceConfig": {
            "InstanceType": f"ml.{machine.name}",
            "InstanceCount": options.nodes,
            "VolumeSizeInGB": min(options.data_gb + 50, machine.nvme_gb or options.data_gb + 50),
        },
        "StoppingCondition": stop,
        "EnableManagedSpotTraining": options.spot,
        "CheckpointConfig": {"S3Uri": f"{run}/run", "LocalPath": RUN_FOLDER},
        "Environment": {"RUN_FOLDER": RUN_FOLDER, "DATA_FOLDER": DATA_FOLDER},
        "Tags": as_tag_list(identity.tags()),
    }


@command(
    "sagemaker submit",
    f"{JOB_EXAMPLE} --spot --role-arn {ROLE} --yes",
    *JOB,
    argument("--role-arn", required=True, help="ARN of the role that SageMaker assumes (docs/aws.md)"),
    argument("--spot", action="store_true", help="managed spot training: cheaper, and restarts automatically"),
    argument("--max-wait-hours", type=float, help="spot: maximum including waiting (default: twice --max-hours)"),
    argument(
        "--input-mode",
        choices=("File", "FastFile"),
        default="File",
        help="File copies the data first, FastFile reads from S3 during training, slowly (default: %(default)s)",
    ),
    argument("--data-gb", type=positive, default=70, help="size of the data (default: %(default)s)"),
)
def _submit(aws: Aws, options: Namespace) -> None:
    """Submit a training job. A repeated call finds the job in progress, or resumes from its checkpoint."""
    client, identity = aws("sagemaker"), identity_of(options)
    _training_job(options, identity, "")  # reject invalid options before calling AWS
    if f"ml.{options.instance_type}" not in client.meta.service_model.shape_for("TrainingInstanceType").enum:
        text = f"SageMaker has no ml.{options.instance_type}. Use another --instance-type."
        raise AwsError(text, code="instance-type-not-offered")
    last = None
    for number in range(1, MAX_JOBS + 1):
        name = _name(identity, number)
        found = _describe(client, name, identity.project)
        if found is None:
            break
        last = found
        if found["TrainingJobStatus"] in IN_PROGRESS:
            print(f"{name} exists already: {found['TrainingJobStatus']}")
            return
    else:
        raise AwsError(f"{identity.run} already has {MAX_JOBS} jobs. Use another --run.", code="aws-name-invalid")
    if last is not None and last["TrainingJobStatus"] == "Completed":
        print(f"{last['TrainingJobName']} has completed: another --run starts from scratch, more --epochs resume it")
    request = _training_job(options, identity, name)
    if aws.confirm(f"training job {identity}", _steps(options, request, resumes=last is not None)):
        call("submitting a training job", client.create_training_job, **request)
        print(f"submitted {name}; its checkpoints and log: {request['CheckpointConfig']['S3Uri']}")


def _name(identity: Identity, number: int) -> str:
    name = f"{identity.project}-{identity.run}-{number}"
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        text = f"job name {name!r} is invalid for SageMaker: {MAX_NAME} letters, digits and '-'. Use another --run."
        raise AwsError(text, code="aws-name-invalid")
    return name


def _describe(client: Any, name: str, project: str) -> Resource | None:
    """Return a job, or None. Names are never reused. Raises AwsError if it belongs to another project."""
    missing = ["ResourceNotFound", "ValidationException"]  # SageMaker answers with either
    describe = client.describe_training_job
    found: Resource | None = call(f"describing {name}", describe, none_if=missing, TrainingJobName=name)
    if found is not None:
        arn = found["TrainingJobArn"]
        tags = paginate(f"reading the tags of {name}", client, "list_tags", "Tags", ResourceArn=arn)
        require_project_tags({"Tags": tags}, name, project)
    return found


def _steps(options: Namespace, request: Mapping[str, Any], *, resumes: bool) -> list[Step]:
    machine, hours, count = instance_type(options.instance_type), options.max_hours, options.nodes
    machines = f"{count} × ml.{machine.name}" if count > 1 else f"ml.{machine.name}"
    how = "on managed spot" if options.spot else "on demand"
    resuming = ", resuming from the run's checkpoint" if resumes else ""
    run = request["CheckpointConfig"]["S3Uri"]
    steps = [
        Step(f"submit {request['TrainingJobName']}: {options.image} on {machines}, {how}{resuming}"),
        Step(f"data from {options.data} ({options.input_mode} mode), checkpoints and log to {run}"),
        Step(
            f"it ends after at most {hours:g} h; SageMaker charges more than EC2's ${machine.price:.2f}/h for this "
            f"instance: at least ${hours * count * machine.price:.2f} on demand in that time"
        ),
    ]
    if options.input_mode == "FastFile":
        steps.append(
            Step("note: training reads in random order, which is slow with FastFile; File mode copies the data first")
        )
    return steps
