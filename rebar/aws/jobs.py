"""The arguments and the command that jobs of AWS Batch and SageMaker share."""

from argparse import Namespace

from rebar.aws.arguments import CONFIG, RESULTS, argument, identity_arguments, positive
from rebar.aws.instances import BY_NAME, config_file
from rebar.aws.user_data import require_no_secrets

TRAIN_JOB, WRITE_JOB = "/opt/rebar/scripts/train_job.sh", "/opt/rebar/scripts/write_job.sh"
"""Paths in the image that scripts/Dockerfile builds."""
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/rebar:1"
ROLE = "arn:aws:iam::123456789012:role/rebar-job"
EXAMPLE = (
    f"--run g5-16 --image {IMAGE} \\\n      --data s3://my-bucket/betons --results s3://my-bucket/runs \\\n"
    "      --instance-type g5.12xlarge --max-hours 3"
)
JOB = [
    *identity_arguments("train"),
    argument("--image", required=True, help="Rebar's image in ECR, built with scripts/Dockerfile"),
    argument("--data", required=True, help="s3://… folder with train.beton and val.beton, or with images"),
    RESULTS,
    argument("--instance-type", metavar="TYPE", help=", ".join(BY_NAME)),
    argument("--nodes", type=positive, default=1, help="number of nodes that train together (default: %(default)s)"),
    argument("--max-hours", type=float, required=True, help="maximum duration of each attempt"),
    CONFIG,
    argument("flags", nargs="*", help="flags of train_imagenet.py (or write_dataset.py), after --"),
]


def training_arguments(options: Namespace) -> list[str]:
    """Return the arguments of train_job.sh; raises AwsError for secrets among them."""
    arguments = ["--config-file", config_file(options), *options.flags]
    advice = "Store it in Secrets Manager (aws secretsmanager create-secret), and set --secret NAME=arn:…"
    require_no_secrets([options.image, *arguments], advice)
    return arguments
