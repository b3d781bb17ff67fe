"""The script that a launched instance runs at its first boot: ``user_data.sh`` and its variables, without secrets."""

import re
import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rebar.aws.snapshots import SNAPSHOT_ID
from rebar.storage.boto import SECRETS, AwsError

TEMPLATE = Path(__file__).with_name("user_data.sh")
MAX_BYTES = 16_384  # EC2's limit
S3_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s]*)?")
SECRET = re.compile(r"[A-Za-z_]\w*=/[\w./-]+")
SUSPICIOUS = re.compile(
    r"(?i)(?:api[_-]?key|secret|token|passw(?:or)?d)[\w-]*[= ](?!/|\$)[^\s/]{8,}"  # --wandb-api-key=0123…
    r"|\bhf_[A-Za-z0-9]{20,}|://[^/\s:@]*:[^/\s@]+@"  # Hugging Face's; https://user:password@…
)


def require_no_secrets(words: Sequence[str], advice: str) -> None:
    """Raise AwsError if a word looks like a secret. The message does not contain it."""
    text = " ".join(words)
    if SECRETS.search(text) or SUSPICIOUS.search(text):
        raise AwsError(f"an argument looks like a secret, and others could read it. {advice}", code="secret-exposed")


def training_command(config: str, flags: Sequence[str]) -> tuple[str, ...]:
    """Return the command that runs train_imagenet.py on all GPUs of the instance."""
    line = (
        "exec ./scripts/torchrun_from_env.sh train_imagenet.py --config-file "
        + shlex.quote(config)
        + ' --data.train_dataset "$DATA_FOLDER/train.beton" --data.val_dataset "$DATA_FOLDER/val.beton"'
        + ' --logging.folder "$RUN_FOLDER" '
        + shlex.join(flags)
    )
    return ("bash", "-c", line.rstrip())


def run_address(options: Namespace) -> str:
    """Return the ``s3://`` folder of the run below ``--results``."""
    return f"{options.results.rstrip('/')}/{options.project}/{options.run_name}"


def render(options: Namespace, command: Sequence[str], data: str, region: str) -> str:
    """Return the script for the options of ``launch``. Raises AwsError for invalid options and for secrets.

    ``data``: an ``s3://`` folder with train.beton and val.beton, a snapshot, or empty.
    """
    if options.max_hours <= 0:
        raise AwsError("--max-hours must be positive.", code="aws-option-invalid")
    if not S3_URL.fullmatch(options.results):
        raise AwsError(f"--results {options.results!r} is not an s3:// folder.", code="aws-option-invalid")
    if data and not S3_URL.fullmatch(data) and not SNAPSHOT_ID.fullmatch(data):
        raise AwsError(f"--data {data!r} is neither an s3:// folder nor snap-….", code="aws-option-invalid")
    for secret in options.secret:
        if not SECRET.fullmatch(secret):
            text = f"--secret {secret.partition('=')[0]}=… is not a parameter. Use NAME=/name/in/parameter/store."
            raise AwsError(text, code="aws-option-invalid")
    given = [options.run_name, options.source, options.revision, data, options.results, *command]
    advice = "Store it with aws ssm put-parameter --type SecureString, and set --secret NAME=/parameter."
    require_no_secrets(given, advice)
    variables = {
        "project": options.project,
        "run": options.run_name,
        "region": region,
        "source": options.source,
        "revision": options.revision,
        "data": data.rstrip("/"),
        "results": run_address(options),
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
