"""``launch validate``: run the validation, or another command, on a launched instance, and download its report."""

import shlex
import signal
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rebar.aws import client
from rebar.aws.arguments import argument, command, identity_arguments, identity_of, run_prefix
from rebar.aws.client import Aws, call, paginate
from rebar.aws.instances import BY_NAME, find_instances, instance_type, require_disk_space
from rebar.aws.launch import INSTANCE, ROLES, launch, terminate
from rebar.aws.user_data import DATA, WORK, render
from rebar.storage.boto import AwsError, translate_aws_error
from rebar.storage.s3 import S3Prefix

STATUS = "exit-status"
GRACE_SECONDS = 900.0


@command(
    "launch validate",
    "--run check-1 --source s3://my-bucket/rebar.tar.gz --data s3://my-bucket/betons \\\n"
    "      --results s3://my-bucket/runs --max-hours 2 --out report" + ROLES,
    *identity_arguments("validate"),
    *WORK,
    argument("--instance-type", default="g4dn.xlarge", metavar="TYPE", help=f"{', '.join(BY_NAME)}; %(default)s"),
    argument("--data", default="", help=f"{DATA}; or hf:imagenet-1k, with --secret HF_TOKEN=/PARAMETER"),
    argument("--command", dest="line", help="bash command instead of the validation; writes to $RUN_FOLDER"),
    argument("--out", type=Path, required=True, help="folder for the report"),
    *INSTANCE,
)
def _validate(aws: Aws, options: Namespace) -> None:
    """Run the one-hour validation, or another command, on one GPU, and download its report."""
    machine = instance_type(options.instance_type)
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
        require_disk_space(aws, machine, options.data, options.data_gb, options.root_gb)
    data = "" if from_hub else options.data
    _run(aws, options, render(options, ("bash", "-c", line), data, aws.ec2.meta.region_name))


def _run(aws: Aws, options: Namespace, script: str) -> None:
    """Launch an instance, wait for its exit status in S3, download the report, terminate.

    A repeated call completes an interrupted one. Raises AwsError if the command failed, or if the instance ended
    without an exit status; the folder then has the part of the report that exists.
    """
    s3, identity, place, folder = aws("s3"), identity_of(options), run_prefix(options), options.out
    if _status(s3, place) is None:
        instance_id = launch(aws, options, script)
        if instance_id is None or not aws.executes:
            return
        with _interrupted_by_sigterm():
            try:
                _wait(aws, options, s3, place)
            finally:
                _download(s3, place, folder)
                terminate(aws, instance_id)
    else:
        print(f"{identity.run} has already ended: nothing is launched, --yes downloads its report")
        if not aws.executes:
            return
        _download(s3, place, folder)
        for instance in find_instances(aws, identity.key):
            terminate(aws, instance["InstanceId"])
    if (summary := folder / "run" / "summary.txt").is_file():
        print(summary.read_text(errors="replace"), end="")
    status = _status(s3, place)
    if status != "0":
        text = f"{identity.run} failed with exit status {status or 'unknown'}. See {folder / 'machine.log'}."
        raise AwsError(text, code="remote-run-failed")
    print(f"{identity.run} is done: its report is in {folder}")


def _wait(aws: Aws, options: Namespace, s3: Any, place: S3Prefix) -> None:
    """Wait until the exit status exists, or the instance does not."""
    identity, deadline = identity_of(options), time.monotonic() + 3600 * options.max_hours + GRACE_SECONDS
    while _status(s3, place) is None and find_instances(aws, identity.key, ("pending", "running")):
        if time.monotonic() > deadline:
            text = f"{identity.run} is still running after --max-hours. Check the AWS console."
            raise AwsError(text, code="aws-wait-failed")
        time.sleep(client.POLL_SECONDS)


def _status(s3: Any, place: S3Prefix) -> str | None:
    """Return the exit status of the command; None if it has not ended."""
    missing, key = ["NoSuchKey"], place.key(STATUS)
    answer = call(f"reading {place}/{STATUS}", s3.get_object, none_if=missing, Bucket=place.bucket, Key=key)
    return None if answer is None else str(answer["Body"].read(64).decode()).strip()


def _download(s3: Any, place: S3Prefix, folder: Path) -> None:
    """Download the results, except the checkpoints."""
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig(preferred_transfer_client="classic")  # CRT ignores AWS_ENDPOINT_URL
    action, prefix = f"downloading {place}", place.key("")
    for entry in paginate(action, s3, "list_objects_v2", "Contents", Bucket=place.bucket, Prefix=prefix):
        name = entry["Key"].removeprefix(prefix)
        target = folder / name
        if not name or name.endswith(".pt") or not target.resolve().is_relative_to(folder.resolve()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with translate_aws_error(action):
            s3.download_file(place.bucket, entry["Key"], str(target), Config=config)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that ``finally`` blocks run."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
