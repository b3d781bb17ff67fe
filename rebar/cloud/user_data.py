"""The script a rented machine runs at its first boot, filled in; never with a secret in it."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebar.cloud.errors import SECRETS, CloudError
from rebar.cloud.snapshots import SNAPSHOT_ID

TEMPLATE = Path(__file__).with_suffix(".sh")
LARGEST_BYTES = 16_384  # EC2's limit
S3_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s]*)?")
SECRET = re.compile(r"[A-Za-z_]\w*=/[\w./-]+")
SUSPICIOUS = re.compile(
    r"(?i)(?:api[_-]?key|secret|token|passw(?:or)?d)[\w-]*[= ](?!/|\$)[^\s/]{8,}"  # --wandb-api-key=0123…
    r"|\bhf_[A-Za-z0-9]{20,}|://[^/\s:@]*:[^/\s@]+@"  # Hugging Face's; https://user:password@…
)


@dataclass(frozen=True)
class Job:
    """What a machine is to do. ``data``: an ``s3://`` folder with train.beton and val.beton, a snapshot, or empty."""

    project: str
    run: str
    region: str
    source: str
    """Where Rebar comes from: a git URL, or an ``s3://`` tar.gz."""
    data: str
    results: str
    """An ``s3://`` folder: checkpoints and logs go to, and come back from, its ``run/``."""
    command: Sequence[str]
    max_minutes: int
    revision: str = ""
    secrets: Sequence[str] = ()
    """``NAME=/parameter/store/name``: put into the environment on the machine."""

    @property
    def results_of_run(self) -> str:
        """The run's own ``s3://`` folder."""
        return f"{self.results.rstrip('/')}/{self.project}/{self.run}"


def training_command(config: str, flags: Sequence[str]) -> tuple[str, ...]:
    """``train_imagenet.py`` on all GPUs of the machine, with the data and the run's folder of the script."""
    line = (
        "exec ./scripts/torchrun_from_env.sh train_imagenet.py --config-file "
        + shlex.quote(config)
        + ' --data.train_dataset "$DATA_FOLDER/train.beton" --data.val_dataset "$DATA_FOLDER/val.beton"'
        + ' --logging.folder "$RUN_FOLDER" '
        + shlex.join(flags)
    )
    return ("bash", "-c", line.rstrip())


def render(job: Job) -> str:
    """The script; raises CloudError for what cannot be, and for what looks like a secret."""
    for what, url in (("--results", job.results), ("--data", job.data)):
        if not S3_URL.fullmatch(url) and (what == "--results" or url.startswith("s3:")):
            raise CloudError(f"{what} must be an s3:// folder, not {url!r}")
    if job.data and not job.data.startswith("s3:") and not SNAPSHOT_ID.fullmatch(job.data):
        raise CloudError(f"--data must be an s3:// folder or snap-…, not {job.data!r}")
    for secret in job.secrets:
        if not SECRET.fullmatch(secret):
            name = secret.partition("=")[0]
            raise CloudError(f"--secret {name}=…: give NAME=/name/in/parameter/store, never the value itself")
    variables = {
        "project": job.project,
        "run": job.run,
        "region": job.region,
        "source": job.source,
        "revision": job.revision,
        "data": job.data.rstrip("/"),
        "results": job.results_of_run,
        "max_minutes": str(job.max_minutes),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    lines.append(f"secret_names=({shlex.join(job.secrets)})")
    lines.append("# shellcheck disable=SC2016  # its variables are set where it runs")
    lines.append(f"command=({shlex.join(job.command)})")
    filled = "\n".join(lines)
    given = " ".join([job.run, job.source, job.revision, job.data, job.results, *job.command])
    if SECRETS.search(given) or SUSPICIOUS.search(given):
        raise CloudError(
            "something in the command looks like a secret, and user data can be read by everybody on the machine: "
            "put it into SSM's parameter store (aws ssm put-parameter --type SecureString) and give --secret NAME=/name"
        )
    script = TEMPLATE.read_text().replace("#VARIABLES#", filled)
    if len(script.encode()) > LARGEST_BYTES:
        raise CloudError(f"the script has {len(script.encode())} bytes, EC2 takes {LARGEST_BYTES}: shorten the command")
    return script
