"""What instances and jobs run: the arguments that their commands share, and the user data of an instance."""

import os
import re
import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rebar.aws.commands import CONFIG, EXPIRES, Aws, argument, command, positive
from rebar.aws.instances import BY_NAME, DATA_GB, INSTANCE_TYPE, config_file
from rebar.aws.tags import RESULTS, SNAPSHOT_ID, identity_arguments, run_prefix
from rebar.storage.aws import SECRETS, AwsError
from rebar.storage.s3 import S3Prefix

TRAIN_JOB, WRITE_JOB = "/opt/rebar/scripts/train_job.sh", "/opt/rebar/scripts/write_job.sh"
"""Paths in the image that scripts/Dockerfile builds."""
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/rebar:1"
ROLE = "arn:aws:iam::123456789012:role/rebar-job"
JOB_EXAMPLE = (
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


TEMPLATE = Path(__file__).with_name("user_data.sh")
MAX_BYTES = 16_384  # EC2's limit
SECRET = re.compile(r"[A-Za-z_]\w*=/[\w./-]+")
SUSPICIOUS = re.compile(
    r"(?i)(?:api[_-]?key|secret|token|passw(?:or)?d)[\w-]*[= ](?!/|\$)[^\s/]{8,}"  # --wandb-api-key=0123…
    r"|\bhf_[A-Za-z0-9]{20,}|://[^/\s:@]*:[^/\s@]+@"  # Hugging Face's; https://user:password@…
)
DATA = "s3://… folder with train.beton and val.beton, or snap-…"
WORK = [
    EXPIRES,
    argument("--source", required=True, help="source of Rebar: git URL, or s3://… tar.gz"),
    argument("--revision", default="", help="commit or tag of a git URL"),
    RESULTS,
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
    INSTANCE_TYPE,
    argument("--data", required=True, help=DATA),
    CONFIG,
    argument("flags", nargs="*", help="flags of train_imagenet.py, after --"),
]
LAUNCH_EXAMPLE = (
    "--run g5-16 --source s3://my-bucket/rebar.tar.gz --data s3://my-bucket/betons \\\n"
    "      --results s3://my-bucket/runs --max-hours 8 --instance-type g5.xlarge"
)


def require_no_secrets(words: Sequence[str], advice: str) -> None:
    """Raise AwsError if a word looks like a secret. The message does not contain it."""
    text = " ".join(words)
    if SECRETS.search(text) or SUSPICIOUS.search(text):
        raise AwsError(f"an argument looks like a secret, and others could read it. {advice}", code="secret-exposed")


def training_command(options: Namespace) -> Sequence[str]:
    """Return the command that runs train_imagenet.py on all GPUs of the instance."""
    line = (
        "exec ./scripts/torchrun_from_env.sh train_imagenet.py --config-file "
        + shlex.quote(config_file(options))
        + ' --data.train_dataset "$DATA_FOLDER/train.beton" --data.val_dataset "$DATA_FOLDER/val.beton"'
        + ' --logging.folder "$RUN_FOLDER" '
        + shlex.join(options.flags)
    )
    return ("bash", "-c", line.rstrip())


def render(options: Namespace, command: Sequence[str], data: str, region: str) -> str:
    """Return the script for the options of ``launch``. Raises AwsError for invalid options and for secrets.

    ``data``: an ``s3://`` folder with train.beton and val.beton, a snapshot, or empty.
    """
    if options.max_hours <= 0:
        raise AwsError("--max-hours must be positive.", code="aws-option-invalid")
    if data and not SNAPSHOT_ID.fullmatch(data):
        data = str(S3Prefix.parse(data, "--data"))
    for secret in options.secret:
        if not SECRET.fullmatch(secret):
            text = f"--secret {secret.partition('=')[0]}=… is not a parameter. Use NAME=/name/in/parameter/store."
            raise AwsError(text, code="aws-option-invalid")
    results = str(run_prefix(options))
    given = [options.run_name, options.source, options.revision, data, results, *command]
    advice = "Store it with aws ssm put-parameter --type SecureString, and set --secret NAME=/parameter."
    require_no_secrets(given, advice)
    variables = {
        "project": options.project,
        "run": options.run_name,
        "region": region,
        "source": options.source,
        "revision": options.revision,
        "data": data,
        "results": results,
        "max_minutes": str(max(1, round(60 * options.max_hours))),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    lines.append(f"secret_names=({shlex.join(options.secret)})")
    lines.append("# shellcheck disable=SC2016  # expanded by the shell that runs the command")
    lines.append(f"command=({shlex.join(command)})")
    script = TEMPLATE.read_text().replace("#VARIABLES#", "\n".join(lines))
    if (size := len(script.encode())) > MAX_BYTES:
        text = f"user data has {size} bytes, EC2's limit is {MAX_BYTES}. Move flags into a --config file."
        raise AwsError(text, code="aws-option-invalid")
    return script


@command("userdata render", LAUNCH_EXAMPLE, *TRAINING, changes=False)
def _render(aws: Aws, options: Namespace) -> None:
    """Print the user data of the instance that 'launch' would start. Changes nothing."""
    region = aws.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    print(render(options, training_command(options), options.data, region), end="")
