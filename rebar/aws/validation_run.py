"""Run the validation, or another command, on a launched instance, and download its report."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rebar.aws import client
from rebar.aws.client import Clients, call, paginate
from rebar.aws.instances import find_instances
from rebar.aws.launch import LaunchSpec, launch, terminate
from rebar.aws.plan import Mode
from rebar.storage.boto import AwsError, translate_aws_error

STATUS = "exit-status"
GRACE_SECONDS = 900.0


def validate(clients: Clients, spec: LaunchSpec, results: str, folder: Path, mode: Mode) -> None:
    """Launch an instance, wait for the exit status in ``results`` (``s3://…``), download the report, terminate.

    Checkpoints are not downloaded. A repeated call completes an interrupted one. Raises AwsError if the command failed,
    or if the instance ended without an exit status; ``folder`` then has the part of the report that exists.
    """
    bucket, _, prefix = results.removeprefix("s3://").partition("/")
    s3, identity = clients("s3"), spec.identity
    if _status(s3, bucket, prefix) is None:
        instance_id = launch(clients, spec, mode)
        if instance_id is None or mode is not Mode.EXECUTE:
            return
        with _interrupted_by_sigterm():
            try:
                _wait(clients, spec, s3, bucket, prefix)
            finally:
                _download(s3, bucket, prefix, folder)
                terminate(clients, instance_id)
    else:
        print(f"{identity.run} has already ended: nothing is launched, --yes downloads its report")
        if mode is not Mode.EXECUTE:
            return
        _download(s3, bucket, prefix, folder)
        for instance in find_instances(clients, identity.key):
            terminate(clients, instance["InstanceId"])
    if (summary := folder / "run" / "summary.txt").is_file():
        print(summary.read_text(errors="replace"), end="")
    status = _status(s3, bucket, prefix)
    if status != "0":
        text = f"{identity.run} failed with exit status {status or 'unknown'}. See {folder / 'machine.log'}."
        raise AwsError(text, code="remote-run-failed")
    print(f"{identity.run} is done: its report is in {folder}")


def _wait(clients: Clients, spec: LaunchSpec, s3: Any, bucket: str, prefix: str) -> None:
    """Wait until the exit status exists, or the instance does not."""
    deadline = time.monotonic() + 3600 * spec.options.max_hours + GRACE_SECONDS
    while _status(s3, bucket, prefix) is None and find_instances(clients, spec.identity.key, ("pending", "running")):
        if time.monotonic() > deadline:
            text = f"{spec.identity.run} is still running after --max-hours. Check the AWS console."
            raise AwsError(text, code="aws-wait-failed")
        time.sleep(client.POLL_SECONDS)


def _status(s3: Any, bucket: str, prefix: str) -> str | None:
    """Return the exit status of the command; None if it has not ended."""
    key = f"{prefix}/{STATUS}"
    answer = call(f"reading s3://{bucket}/{key}", s3.get_object, none_if=["NoSuchKey"], Bucket=bucket, Key=key)
    return None if answer is None else str(answer["Body"].read(64).decode()).strip()


def _download(s3: Any, bucket: str, prefix: str, folder: Path) -> None:
    """Download the results, except the checkpoints."""
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig(preferred_transfer_client="classic")  # CRT ignores AWS_ENDPOINT_URL
    action = f"downloading s3://{bucket}/{prefix}"
    for entry in paginate(action, s3, "list_objects_v2", "Contents", Bucket=bucket, Prefix=f"{prefix}/"):
        name = entry["Key"].removeprefix(f"{prefix}/")
        target = folder / name
        if not name or name.endswith(".pt") or not target.resolve().is_relative_to(folder.resolve()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with translate_aws_error(action):
            s3.download_file(bucket, entry["Key"], str(target), Config=config)


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
