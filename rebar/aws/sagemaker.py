"""What a container of AWS Batch or SageMaker is to do; never with a secret in it.

SageMaker's training jobs: one submitted where none of the run is under way; the next goes on from its checkpoint.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rebar.aws.client import SECRETS, AwsError, Clients, code_of, translate_aws_error
from rebar.aws.instances import InstanceType
from rebar.aws.launch import SUSPICIOUS
from rebar.aws.plan import Call, Mode, Step, confirm_plan
from rebar.aws.s3_transfer import Folder
from rebar.aws.tags import Identity, as_list, require_our_tags

TRAIN_JOB, WRITE_JOB = "/opt/rebar/scripts/train_job.sh", "/opt/rebar/scripts/write_job.sh"
"""Where scripts/Dockerfile puts Rebar."""
SECRET_ARN = re.compile(
    r"([A-Za-z_]\w*)=(arn:aws[\w-]*:(?:secretsmanager:[^:\s]+:\d{12}:secret:|ssm:[^:\s]+:\d{12}:parameter/)\S+)"
)


@dataclass(frozen=True)
class Container:
    """``image``: of Rebar, from ECR. ``gpus`` 0: a machine without; ``memory`` in MiB."""

    image: str
    command: Sequence[str]
    environment: Mapping[str, str]
    vcpus: int
    memory: int
    gpus: int = 0
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Names of environment variables, and the ARNs in Secrets Manager or the parameter store they come from."""

    def __post_init__(self) -> None:
        told = " ".join([self.image, *self.command, *(f"{name}={value}" for name, value in self.environment.items())])
        if SECRETS.search(told) or SUSPICIOUS.search(told):
            raise AwsError(
                "something in the command looks like a secret, and job definitions can be read by everybody in the "
                "account: put it into Secrets Manager (aws secretsmanager create-secret) and give --secret NAME=arn:…"
            )


def secret_arns(given: Sequence[str]) -> dict[str, str]:
    """``NAME=arn:…`` as a dictionary; raises AwsError for a value in the place of an ARN, without repeating it."""
    found = {}
    for each in given:
        match = SECRET_ARN.fullmatch(each)
        if match is None:
            name = each.partition("=")[0]
            raise AwsError(
                f"--secret {name}=…: give NAME=arn:aws:secretsmanager:… (or the ARN of a parameter), never the value"
            )
        found[match[1]] = match[2]
    return found


def training_container(
    image: str,
    machine: InstanceType,
    *,
    config: str,
    flags: Sequence[str],
    environment: Mapping[str, str],
    secrets: Mapping[str, str],
) -> Container:
    """Training with all that a machine has, but for the tenth of the memory that its system takes."""
    return Container(
        image,
        (TRAIN_JOB, "--config-file", config, *flags),
        environment,
        machine.vcpus,
        machine.memory_gib * 1024 * 9 // 10,
        machine.gpus,
        secrets,
    )


RUN_FOLDER = "/opt/ml/checkpoints"
"""SageMaker copies it to and from S3 by itself, also from one spot machine to the next."""
DATA_FOLDER = "/opt/ml/input/data/training"
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
LONGEST_NAME = 63
LONGEST_ARGUMENT, LONGEST_VALUE = 256, 512
MOST_JOBS = 50
UNDER_WAY = ("InProgress", "Stopping")


@dataclass(frozen=True)
class TrainingJob:
    """What to train. ``input_mode``: ``File`` copies the data first, ``FastFile`` reads them from S3 meanwhile."""

    identity: Identity
    container: Container
    machine: InstanceType
    role: str
    data: Folder
    results: Folder
    max_hours: float
    nodes: int = 1
    spot: bool = False
    max_wait_hours: float | None = None
    """On spot: with the time for waiting for machines; None: twice ``max_hours``."""
    input_mode: str = "File"
    volume_gb: int = 100

    @property
    def place(self) -> Folder:
        """The run's own folder in S3."""
        return Folder(self.results.bucket, self.results.key(f"{self.identity.project}/{self.identity.run}"))

    def request(self, name: str) -> dict[str, Any]:
        """The parameters of CreateTrainingJob."""
        seconds = round(self.max_hours * 3600)
        stop = {"MaxRuntimeInSeconds": seconds}
        if self.spot:
            wait = 2 * self.max_hours if self.max_wait_hours is None else self.max_wait_hours
            stop["MaxWaitTimeInSeconds"] = round(wait * 3600)
        source = {"S3DataType": "S3Prefix", "S3Uri": f"{self.data}/", "S3DataDistributionType": "FullyReplicated"}
        container = self.container
        return {
            "TrainingJobName": name,
            "AlgorithmSpecification": {
                "TrainingImage": container.image,
                "TrainingInputMode": self.input_mode,
                "ContainerEntrypoint": [container.command[0]],
                "ContainerArguments": list(container.command[1:]),
            },
            "RoleArn": self.role,
            "InputDataConfig": [
                {"ChannelName": "training", "DataSource": {"S3DataSource": source}, "InputMode": self.input_mode}
            ],
            "OutputDataConfig": {"S3OutputPath": f"{self.place}/output"},
            "ResourceConfig": {
                "InstanceType": f"ml.{self.machine.name}",
                "InstanceCount": self.nodes,
                "VolumeSizeInGB": self.volume_gb,
            },
            "StoppingCondition": stop,
            "EnableManagedSpotTraining": self.spot,
            "CheckpointConfig": {"S3Uri": f"{self.place}/run", "LocalPath": RUN_FOLDER},
            "Environment": dict(container.environment),
            "Tags": as_list(self.identity.tags()),
        }


def submit_training(clients: Clients, job: TrainingJob, mode: Mode) -> str | None:
    """Submit a training job, or find the run's one under way; its name, None where only the plan was shown.

    The names of ended jobs are taken for ever: the next one's has the next number, and goes on from the checkpoint.
    Raises AwsError where SageMaker would refuse it, and where a name is somebody else's.
    """
    client = clients("sagemaker")
    _require_possible(client, job)
    number, last = 0, None
    for number in range(1, MOST_JOBS + 1):
        found = _describe(client, _name(job.identity, number))
        if found is None:
            break
        _require_ours(client, found, job.identity.project)
        last = found
        if found["TrainingJobStatus"] in UNDER_WAY:
            print(f"{found['TrainingJobName']} exists already: {found['TrainingJobStatus']}")
            return str(found["TrainingJobName"])
    else:
        raise AwsError(f"{job.identity.run} has had {MOST_JOBS} jobs: choose another --run")
    if last is not None and last["TrainingJobStatus"] == "Completed":
        print(f"{last['TrainingJobName']} has completed: another --run trains anew, more --epochs go on")
    request = job.request(_name(job.identity, number))
    if not confirm_plan(mode, f"training job {job.identity}", _steps(job, request, again=last is not None)):
        return None
    Call(client, "create_training_job", request).send("submitting a training job")
    print(f"submitted {request['TrainingJobName']}; its checkpoints and log: {job.place}/run")
    return str(request["TrainingJobName"])


def _name(identity: Identity, number: int) -> str:
    name = f"{identity.project}-{identity.run}-{number}"
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise AwsError(
            f"{name!r}: SageMaker's names are letters, digits and '-' (at most {LONGEST_NAME}): choose another --run"
        )
    return name


def _require_possible(client: Any, job: TrainingJob) -> None:
    """What SageMaker's own description of its interface says of machines and lengths."""
    known = client.meta.service_model.shape_for("TrainingInstanceType").enum
    if f"ml.{job.machine.name}" not in known:
        raise AwsError(f"SageMaker has no ml.{job.machine.name}")
    if job.max_hours <= 0 or (job.max_wait_hours is not None and job.max_wait_hours < job.max_hours):
        raise AwsError("--max-hours must be above zero, --max-wait-hours not below --max-hours")
    long = [word for word in job.container.command if len(word) > LONGEST_ARGUMENT]
    long += [value for value in job.container.environment.values() if len(value) > LONGEST_VALUE]
    if long or len(job.container.command) > 100:
        raise AwsError(f"SageMaker takes 100 arguments of {LONGEST_ARGUMENT} letters: put more into a --config file")


def _describe(client: Any, name: str) -> Mapping[str, Any] | None:
    from botocore.exceptions import ClientError

    with translate_aws_error(f"looking for the training job {name}"):
        try:
            found: Mapping[str, Any] = client.describe_training_job(TrainingJobName=name)
            return found
        except ClientError as error:
            message = error.response.get("Error", {}).get("Message", "").lower()
            missing = "not found" in message or "could not find" in message
            if code_of(error) == "ResourceNotFound" or (code_of(error) == "ValidationException" and missing):
                return None
            raise


def _require_ours(client: Any, found: Mapping[str, Any], project: str) -> None:
    with translate_aws_error(f"reading the tags of {found['TrainingJobName']}"):
        pages = client.get_paginator("list_tags").paginate(ResourceArn=found["TrainingJobArn"])
        tags = [tag for page in pages for tag in page["Tags"]]
    require_our_tags({"Tags": tags}, found["TrainingJobName"], project)


def _steps(job: TrainingJob, request: Mapping[str, Any], *, again: bool) -> list[Step]:
    machines = f"{job.nodes} × ml.{job.machine.name}" if job.nodes > 1 else f"ml.{job.machine.name}"
    how = "on managed spot" if job.spot else "on demand"
    goes_on = ", going on from the run's checkpoint" if again else ""
    steps = [
        Step(f"submit {request['TrainingJobName']}: {job.container.image} on {machines}, {how}{goes_on}"),
        Step(f"data from {job.data}/ ({job.input_mode} mode), checkpoints and log to {job.place}/run"),
        Step(
            f"it ends after {job.max_hours:g} h at the latest; SageMaker's prices are its own, above EC2's "
            f"${job.machine.price:.2f} an hour for this machine: at least ${_least(job):.2f} on demand in that time"
        ),
    ]
    if job.input_mode == "FastFile":
        steps.append(Step("note: training reads at random; through FastFile that is slow, File mode copies first"))
    return steps


def _least(job: TrainingJob) -> float:
    return job.max_hours * job.nodes * job.machine.price
