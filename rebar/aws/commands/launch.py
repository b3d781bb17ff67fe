"""``launch single|multi|validate`` and ``userdata render``."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rebar.aws.capacity import DATA_GB, require_disk_space, spot_price
from rebar.aws.commands.parsers import (
    EXPIRES,
    add_command,
    add_group,
    argument,
    clients_of,
    identity_arguments,
    identity_of,
    positive,
)
from rebar.aws.instances import BY_NAME, InstanceType, instance_type
from rebar.aws.launch import LaunchSpec, launch
from rebar.aws.plan import mode_of
from rebar.aws.user_data import render, run_address, training_command
from rebar.aws.validation_run import validate
from rebar.storage.boto import AwsError

SOURCE = "s3://my-bucket/rebar.tar.gz"
EXAMPLE = (
    f"--run g5-16 --source {SOURCE} --data s3://my-bucket/betons \\\n"
    "      --results s3://my-bucket/runs --max-hours {hours} --instance-type {machine}"
)
ROLES = " \\\n      --instance-profile rebar --scheduler-role arn:aws:iam::123456789012:role/rebar-scheduler --yes"
DATA = "s3://… folder with train.beton and val.beton, or snap-…"
WORK = [
    EXPIRES,
    argument("--source", required=True, help="source of Rebar: git URL, or s3://… tar.gz"),
    argument("--revision", default="", help="commit or tag of a git URL"),
    argument("--results", required=True, help="s3://… folder; checkpoints of an earlier instance are read from there"),
    argument("--data-gb", type=positive, help=f"size of the data (default: from AWS, {DATA_GB} if not available)"),
    argument("--max-hours", type=float, required=True, help="the instance terminates after this time in any case"),
    argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME=/PARAMETER",
        help="environment variable from SSM's parameter store, such as WANDB_API_KEY=/rebar/wandb",
    ),
]
TRAINING = [
    *identity_arguments("train"),
    *WORK,
    argument("--instance-type", required=True, metavar="TYPE", help=", ".join(BY_NAME)),
    argument("--data", required=True, help=DATA),
    argument("--config", help="config file (default: the instance type's in rn50_configs/)"),
    argument("flags", nargs="*", help="flags of train_imagenet.py, after --"),
]
INSTANCE = [
    argument(
        "--spot",
        action="store_true",
        help="launch on spot: cheaper, but may be interrupted; then run the command again",
    ),
    argument("--instance-profile", required=True, help="IAM instance profile of the instance (docs/aws.md)"),
    argument("--scheduler-role", required=True, help="ARN of the role that may terminate it (docs/aws.md)"),
    argument("--image", help="AMI (default: AWS's newest Deep Learning Base AMI, Ubuntu 22.04)"),
    argument("--zone", help="availability zone (default: any)"),
    argument("--subnet", help="default: the default VPC's"),
    argument(
        "--security-group", action="append", default=[], help="default: the VPC's default group; no open port is needed"
    ),
    argument("--key-name", help="key pair for SSH; not needed"),
    argument("--root-gb", type=positive, default=100, help="system disk (default: %(default)s)"),
]


def add(groups: Any) -> None:
    """Declare the commands."""
    group = add_group(groups, "launch", "Launch an instance that trains, uploads the run, and terminates.")
    for name, machine, hours, summary in (
        ("single", "g5.xlarge", 8, "Train on an instance with one GPU."),
        ("multi", "g5.12xlarge", 4, "Train on all GPUs of an instance with several."),
    ):
        example = f"launch {name} " + EXAMPLE.format(machine=machine, hours=hours) + ROLES
        command = add_command(group, name, _launch, summary, example, *TRAINING, *INSTANCE)
        command.set_defaults(single=name == "single")
    add_command(
        group,
        "validate",
        _validate,
        "Run the one-hour validation, or another command, on one GPU, and download its report.",
        f"launch validate --run check-1 --source {SOURCE} --data s3://my-bucket/betons \\\n"
        "      --results s3://my-bucket/runs --max-hours 2 --out report" + ROLES,
        *identity_arguments("validate"),
        *WORK,
        argument("--instance-type", default="g4dn.xlarge", metavar="TYPE", help=f"{', '.join(BY_NAME)}; %(default)s"),
        argument("--data", default="", help=f"{DATA}; or hf:imagenet-1k, with --secret HF_TOKEN=/PARAMETER"),
        argument("--command", dest="line", help="bash command instead of the validation; writes to $RUN_FOLDER"),
        argument("--out", type=Path, required=True, help="folder for the report"),
        *INSTANCE,
    )
    add_command(
        add_group(groups, "userdata", "Print the script that a launched instance runs."),
        "render",
        _render,
        "Print the user data of the instance that 'launch' would start. Changes nothing.",
        "userdata render " + EXAMPLE.format(machine="g5.xlarge", hours=8),
        *TRAINING,
        changes=False,
    )


def _training(options: argparse.Namespace, machine: InstanceType) -> Sequence[str]:
    return training_command(options.config or f"rn50_configs/{machine.config}", options.flags)


def _launch(options: argparse.Namespace) -> None:
    clients, machine = clients_of(options), instance_type(options.instance_type)
    if options.single != (machine.gpus == 1):
        text = f"{machine.name} has {machine.gpus} GPU{'s' if machine.gpus > 1 else ''}"
        advice = f"Use launch {'single' if machine.gpus == 1 else 'multi'}."
        raise AwsError(f"{text}. {advice}", code="instance-type-unsuitable")
    require_disk_space(clients, machine, options.data, options.data_gb, options.root_gb)
    script = render(options, _training(options, machine), options.data, clients.ec2.meta.region_name)
    if options.spot:
        offer = spot_price(clients, machine)
        print(f"spot: ${offer.dollars:.4f}/h in {offer.zone}")
    launch(clients, LaunchSpec(identity_of(options), machine, script, options), mode_of(options))


def _validate(options: argparse.Namespace) -> None:
    clients, machine = clients_of(options), instance_type(options.instance_type)
    if machine.gpus != 1:
        text = f"{machine.name} has {machine.gpus} GPUs. Use a type with one, such as g5.xlarge."
        raise AwsError(text, code="instance-type-unsuitable")
    from_hub = options.data.startswith("hf:")
    line = options.line
    if line is None:
        if not options.data:
            text = "--data is missing. Use s3://…, snap-… or hf:imagenet-1k, or set --command."
            raise AwsError(text, code="aws-option-invalid")
        images = shlex.quote(options.data) if from_hub else '"$DATA_FOLDER"'
        line = f"exec ./scripts/validation_run.sh {images}"
    if options.data and not from_hub:
        require_disk_space(clients, machine, options.data, options.data_gb, options.root_gb)
    data = "" if from_hub else options.data
    script = render(options, ("bash", "-c", line), data, clients.ec2.meta.region_name)
    spec = LaunchSpec(identity_of(options), machine, script, options)
    validate(clients, spec, run_address(options), options.out, mode_of(options))


def _render(options: argparse.Namespace) -> None:
    machine = instance_type(options.instance_type)
    region = options.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    print(render(options, _training(options, machine), options.data, region), end="")
