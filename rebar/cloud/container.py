"""What a container of AWS Batch or SageMaker is to do; never with a secret in it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rebar.cloud.errors import SECRETS, CloudError
from rebar.cloud.instances import InstanceType
from rebar.cloud.user_data import SUSPICIOUS

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
            raise CloudError(
                "something in the command looks like a secret, and job definitions can be read by everybody in the "
                "account: put it into Secrets Manager (aws secretsmanager create-secret) and give --secret NAME=arn:…"
            )


def secret_arns(given: Sequence[str]) -> dict[str, str]:
    """``NAME=arn:…`` as a dictionary; raises CloudError for a value in the place of an ARN, without repeating it."""
    found = {}
    for each in given:
        match = SECRET_ARN.fullmatch(each)
        if match is None:
            name = each.partition("=")[0]
            raise CloudError(
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
