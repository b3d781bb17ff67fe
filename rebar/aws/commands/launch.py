"""``launch single|multi|validate`` and ``userdata render``."""

import argparse
import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rebar.aws.capacity import DATA_GB, require_fit, spot_price
from rebar.aws.client import AwsError, Clients
from rebar.aws.commands.parsers import add_command, add_group, add_identity, clients_of, identity_of, positive
from rebar.aws.instances import BY_NAME, InstanceType, instance_type
from rebar.aws.launch import Job, Rental, launch, render, training_command
from rebar.aws.plan import mode_of
from rebar.aws.tags import expiry
from rebar.aws.validation_run import validate

SOURCE = "s3://my-bucket/rebar.tar.gz"
EXAMPLE = (
    f"--run g5-16 --source {SOURCE} --data s3://my-bucket/betons \\\n"
    "      --results s3://my-bucket/runs --max-hours {hours} --instance-type {machine}"
)
DATA_FOLDER = '"$DATA_FOLDER"'
RENT = " \\\n      --instance-profile rebar --scheduler-role arn:aws:iam::123456789012:role/rebar-scheduler --yes"


def add(groups: Any) -> None:
    """Declare the commands."""
    group = add_group(groups, "launch", "Rent a machine that trains, uploads, and ends by itself.")
    for name, machine, hours, summary in (
        ("single", "g5.xlarge", 8, "Train on a machine with one GPU."),
        ("multi", "g5.12xlarge", 4, "Train on all GPUs of a machine with several."),
    ):
        example = f"launch {name} " + EXAMPLE.format(machine=machine, hours=hours) + RENT
        command = add_command(group, name, _launch, summary, example)
        command.set_defaults(single=name == "single")
        _add_job(command)
        _add_rental(command)

    check = add_command(
        group,
        "validate",
        _validate,
        "Run the one-hour validation, or another command, on a machine with one GPU; bring back its report; end it.",
        f"launch validate --run check-1 --source {SOURCE} --data s3://my-bucket/betons \\\n"
        "      --results s3://my-bucket/runs --max-hours 2 --out report" + RENT,
    )
    _add_work(check, "validate", default_machine="g4dn.xlarge")
    _add_data(check, "or hf:imagenet-1k, with --secret HF_TOKEN=/PARAMETER; not needed with --command", required=False)
    _add_rental(check)
    check.add_argument(
        "--command",
        dest="line",
        help="a line for bash in place of the validation; what it leaves in $RUN_FOLDER is brought back",
    )
    check.add_argument("--out", type=Path, required=True, help="folder for the report")

    scripts = add_group(groups, "userdata", "The script a rented machine runs.")
    show = add_command(
        scripts,
        "render",
        _render,
        "Print the script that 'launch' would give the machine; changes nothing.",
        "userdata render " + EXAMPLE.format(machine="g5.xlarge", hours=8),
        changes=False,
    )
    _add_job(show)


def _add_job(parser: argparse.ArgumentParser) -> None:
    _add_work(parser, "train")
    _add_data(parser)
    parser.add_argument("--config", help="recipe or machine; default: the machine's in rn50_configs/")
    parser.add_argument("flags", nargs="*", help="flags of train_imagenet.py, after --")


def _add_data(parser: argparse.ArgumentParser, more: str = "", *, required: bool = True) -> None:
    known = "s3://… folder with train.beton and val.beton, or snap-…"
    parser.add_argument("--data", required=required, default="", help=f"{known}; {more}" if more else known)
    parser.add_argument(
        "--data-gb", type=positive, help=f"size of the data; default: as AWS tells, {DATA_GB} where it does not"
    )


def _add_work(parser: argparse.ArgumentParser, role: str, default_machine: str | None = None) -> None:
    add_identity(parser, role)
    parser.add_argument(
        "--instance-type",
        required=default_machine is None,
        default=default_machine,
        metavar="TYPE",
        help=", ".join(BY_NAME) + (f" (default: {default_machine})" if default_machine else ""),
    )
    parser.add_argument("--source", required=True, help="where the machine gets Rebar: git URL, or s3://… tar.gz")
    parser.add_argument("--revision", default="", help="commit or tag of a git URL")
    parser.add_argument(
        "--results", required=True, help="s3://… folder; an earlier machine's checkpoint is found there"
    )
    parser.add_argument("--max-hours", type=float, required=True, help="the machine ends after them, whatever happens")
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME=/PARAMETER",
        help="environment variable from SSM's parameter store, such as WANDB_API_KEY=/rebar/wandb",
    )


def _add_rental(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--spot", action="store_true", help="cheaper; run the command again when it was interrupted")
    parser.add_argument("--instance-profile", required=True, help="IAM instance profile of the machine (docs/aws.md)")
    parser.add_argument("--scheduler-role", required=True, help="ARN of the role that may terminate it (docs/aws.md)")
    parser.add_argument("--image", help="AMI; default: AWS's newest Deep Learning Base AMI, Ubuntu 22.04")
    parser.add_argument("--zone", help="availability zone; with a snapshot's copy any will do")
    parser.add_argument("--subnet", help="default: the default VPC's")
    parser.add_argument(
        "--security-group", action="append", default=[], help="default: the VPC's; no port need be open"
    )
    parser.add_argument("--key-name", help="to log in by SSH; not needed")
    parser.add_argument("--root-gb", type=positive, default=100, help="system disk (default: %(default)s)")


def _job(options: argparse.Namespace, region: str, data: str, command: Sequence[str]) -> Job:
    if options.max_hours <= 0:
        raise AwsError("--max-hours must be above zero")
    return Job(
        options.project,
        options.run_name,
        region,
        options.source,
        data,
        options.results,
        command,
        max_minutes=max(1, round(60 * options.max_hours)),
        revision=options.revision,
        secrets=options.secret,
    )


def _training(options: argparse.Namespace, machine: InstanceType, region: str) -> Job:
    config = options.config or f"rn50_configs/{machine.config}"
    return _job(options, region, options.data, training_command(config, options.flags))


def _rental(options: argparse.Namespace, machine: InstanceType, job: Job) -> Rental:
    identity = identity_of(options)
    if identity.expires is None:  # so that 'cost sweep' ends it, should all else fail
        identity = replace(identity, expires=expiry(math.ceil(options.max_hours / 24)))
    return Rental(
        identity,
        machine,
        render(job),
        options.instance_profile,
        options.scheduler_role,
        options.max_hours,
        spot=options.spot,
        image=options.image,
        subnet=options.subnet,
        zone=options.zone,
        security_groups=options.security_group,
        key_name=options.key_name,
        root_gb=options.root_gb,
    )


def _launch(options: argparse.Namespace) -> None:
    clients, machine = clients_of(options), instance_type(options.instance_type)
    if options.single and machine.gpus != 1:
        raise AwsError(f"{machine.name} has {machine.gpus} GPUs: launch multi")
    if not options.single and machine.gpus == 1:
        raise AwsError(f"{machine.name} has one GPU: launch single")
    require_fit(clients, machine, options.data, options.data_gb, options.root_gb)
    rental = _rental(options, machine, _training(options, machine, _region(clients)))
    if options.spot:
        offer = spot_price(clients, machine)
        print(f"spot: ${offer.dollars:.4f} an hour in {offer.zone} now")
    launch(clients, rental, mode_of(options))


def _validate(options: argparse.Namespace) -> None:
    clients, machine = clients_of(options), instance_type(options.instance_type)
    if machine.gpus != 1:
        raise AwsError(f"{machine.name} has {machine.gpus} GPUs: take a machine with one, such as g5.xlarge")
    hub = options.data.startswith("hf:")
    line = options.line
    if line is None:
        if not options.data:
            raise AwsError("the validation needs images: --data s3://…, snap-… or hf:imagenet-1k (or give --command)")
        line = f"exec ./scripts/validation_run.sh {shlex.quote(options.data) if hub else DATA_FOLDER}"
    if options.data and not hub:
        require_fit(clients, machine, options.data, options.data_gb, options.root_gb)
    job = _job(options, _region(clients), "" if hub else options.data, ("bash", "-c", line))
    validate(clients, _rental(options, machine, job), job.results_of_run, options.out, mode_of(options))


def _region(clients: Clients) -> str:
    region: str = clients.ec2.meta.region_name
    return region


def _region_of_environment(options: argparse.Namespace) -> str:
    """Without asking boto3, which need not be there to print a script."""
    named = options.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return named or "us-east-1"


def _render(options: argparse.Namespace) -> None:
    machine = instance_type(options.instance_type)
    print(render(_training(options, machine, _region_of_environment(options))), end="")
