"""What the commands that start jobs in containers have in common."""

import argparse

from rebar.aws.client import AwsError
from rebar.aws.commands.parsers import positive
from rebar.aws.instances import BY_NAME, InstanceType, instance_type

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/rebar:1"
S3 = "--data s3://my-bucket/betons --results s3://my-bucket/runs"
ROLE = "arn:aws:iam::123456789012:role/rebar-job"


def add_work(parser: argparse.ArgumentParser) -> None:
    """What is to be done, with which data, and on what."""
    parser.add_argument("--image", required=True, help="Rebar's image in ECR, made with scripts/Dockerfile")
    parser.add_argument("--data", required=True, help="s3://… folder with train.beton and val.beton, or images")
    parser.add_argument(
        "--results", required=True, help="s3://… folder; an earlier attempt's checkpoint is found there"
    )
    parser.add_argument("--instance-type", metavar="TYPE", help=", ".join(BY_NAME))
    parser.add_argument("--nodes", type=positive, default=1, help="machines that train together (default: %(default)s)")
    parser.add_argument("--max-hours", type=float, required=True, help="each attempt ends after them")
    parser.add_argument("--config", help="recipe or machine; default: the machine's in rn50_configs/")
    parser.add_argument("flags", nargs="*", help="flags of train_imagenet.py (or write_dataset.py), after --")


def machine_of(options: argparse.Namespace) -> InstanceType:
    """The machine asked for; raises AwsError."""
    if not options.instance_type:
        raise AwsError("--instance-type is missing")
    return instance_type(options.instance_type)
