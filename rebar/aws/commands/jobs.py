"""``batch register|submit`` and ``sagemaker submit``."""

import argparse
from typing import Any

from rebar.aws.batch import definition, register, submit
from rebar.aws.commands.parsers import (
    add_command,
    add_group,
    argument,
    clients_of,
    identity_arguments,
    identity_of,
    positive,
)
from rebar.aws.instances import BY_NAME
from rebar.aws.plan import mode_of
from rebar.aws.sagemaker import submit_training
from rebar.aws.tags import Identity

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/rebar:1"
S3 = "--data s3://my-bucket/betons --results s3://my-bucket/runs"
ROLE = "arn:aws:iam::123456789012:role/rebar-job"
JOB = [
    *identity_arguments("train"),
    argument("--image", required=True, help="Rebar's image in ECR, built with scripts/Dockerfile"),
    argument("--data", required=True, help="s3://… folder with train.beton and val.beton, or with images"),
    argument("--results", required=True, help="s3://… folder; the checkpoint of an earlier attempt is read from there"),
    argument("--instance-type", metavar="TYPE", help=", ".join(BY_NAME)),
    argument("--nodes", type=positive, default=1, help="number of nodes that train together (default: %(default)s)"),
    argument("--max-hours", type=float, required=True, help="maximum duration of each attempt"),
    argument("--config", help="config file (default: the instance type's in rn50_configs/)"),
    argument("flags", nargs="*", help="flags of train_imagenet.py (or write_dataset.py), after --"),
]


def add(groups: Any) -> None:
    """Declare the commands."""
    batch = add_group(groups, "batch", "Train, or write a .beton in parallel, with AWS Batch.")
    add_command(
        batch,
        "register",
        _register,
        "Register a job definition: training on one node, on several (--nodes), or writing a .beton in parallel "
        "(--shards). An unchanged definition is not registered again.",
        f"batch register --run g5-16 --image {IMAGE} \\\n      {S3} \\\n"
        f"      --instance-type g5.12xlarge --max-hours 3 --attempts 5 --job-role {ROLE} --yes",
        *JOB,
        argument("--job-role", required=True, help="ARN of the container's role (docs/aws.md)"),
        argument("--execution-role", help="ARN of the role with which Batch reads secrets"),
        argument(
            "--secret",
            action="append",
            default=[],
            metavar="NAME=ARN",
            help="environment variable from Secrets Manager, such as WANDB_API_KEY=arn:aws:secretsmanager:…",
        ),
        argument(
            "--attempts",
            type=positive,
            default=1,
            help="number of attempts; only spot interruptions are retried (default: %(default)s)",
        ),
        argument(
            "--shards", type=positive, default=0, metavar="N", help="write a .beton in N shards instead of training"
        ),
        argument("--vcpus", type=positive, default=8, help="vCPUs per shard (default: %(default)s)"),
        argument("--memory-gib", type=positive, default=16, help="memory per shard (default: %(default)s)"),
        argument("--scratch", metavar="FOLDER", help="folder of the host for data, on its NVMe disks"),
    )
    add_command(
        batch,
        "submit",
        _submit,
        "Submit a job with the run's definition. A repeated call finds the unfinished job.",
        "batch submit --run g5-16 --queue rebar-spot --yes",
        argument("--run", dest="run_name", required=True, metavar="NAME", help="as registered"),
        argument("--role", default="train", help="as registered (default: %(default)s)"),
        argument("--queue", required=True, help="job queue: spot for one node, on-demand for several"),
    )
    sagemaker = add_group(groups, "sagemaker", "Train with SageMaker.")
    add_command(
        sagemaker,
        "submit",
        _submit_training,
        "Submit a training job. A repeated call finds the job in progress, or resumes from its checkpoint.",
        f"sagemaker submit --run g5-16 --image {IMAGE} \\\n      {S3} \\\n"
        f"      --instance-type g5.12xlarge --max-hours 3 --spot --role-arn {ROLE} --yes",
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


def _register(options: argparse.Namespace) -> None:
    clients, identity = clients_of(options), identity_of(options)
    region = clients("batch").meta.region_name
    register(clients, identity, definition(options, identity, region), mode_of(options))


def _submit(options: argparse.Namespace) -> None:
    identity = Identity(options.project, options.run_name, options.role)
    submit(clients_of(options), identity, options.queue, mode_of(options))


def _submit_training(options: argparse.Namespace) -> None:
    submit_training(clients_of(options), options, identity_of(options), mode_of(options))
