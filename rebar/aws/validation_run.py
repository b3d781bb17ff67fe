"""The validation, or any command, on a rented GPU: its report is brought back, the machine ended, whatever happens."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rebar.aws.client import AwsError, Clients, code_of, translate_aws_error, wait_until
from rebar.aws.launch import Rental, launch, terminate
from rebar.aws.plan import Mode
from rebar.aws.sweep import find_instances
from rebar.aws.tags import Identity

STATUS = "exit-status"
GRACE_SECONDS = 900.0


def validate(clients: Clients, rental: Rental, results: str, folder: Path, mode: Mode) -> None:
    """Rent, wait until ``results`` (an ``s3://`` folder) has an exit status, fetch it without checkpoints, terminate.

    What an earlier call began is waited for; what it finished is only fetched. Raises AwsError where the command
    failed, or where the machine ended without a result; what there is of a report is in ``folder`` then.
    """
    bucket, _, prefix = results.removeprefix("s3://").partition("/")
    s3, identity = clients("s3"), rental.identity
    if _status(s3, bucket, prefix) is None:
        instance_id = launch(clients, rental, mode)
        if instance_id is None or mode is not Mode.DO:
            return
        with _ended_by_signals():
            try:
                _wait(clients, s3, bucket, prefix, identity, rental.max_hours)
            finally:
                _fetch(s3, bucket, prefix, folder)
                terminate(clients, instance_id)
    else:
        print(f"{identity.run} has ended already: nothing is rented, --yes fetches its report")
        if mode is not Mode.DO:
            return
        _fetch(s3, bucket, prefix, folder)
        for instance in find_instances(clients, identity.key):
            terminate(clients, instance["InstanceId"])
    _show_summary(folder)
    status = _status(s3, bucket, prefix)
    if status != "0":
        raise AwsError(f"{identity.run} ended with status {status or 'unknown'}: see {folder / 'machine.log'}")
    print(f"{identity.run} is done: its report is in {folder}")


def _wait(clients: Clients, s3: Any, bucket: str, prefix: str, identity: Identity, max_hours: float) -> None:
    def has_ended() -> bool:
        alive = find_instances(clients, identity.key, ("pending", "running"))
        return _status(s3, bucket, prefix) is not None or not alive

    wait_until("the machine's report", has_ended, bool, seconds=3600 * max_hours + GRACE_SECONDS)


def _status(s3: Any, bucket: str, prefix: str) -> str | None:
    """The command's exit status; None before its end."""
    from botocore.exceptions import ClientError

    with translate_aws_error(f"looking for s3://{bucket}/{prefix}/{STATUS}"):
        try:
            answer = s3.get_object(Bucket=bucket, Key=f"{prefix}/{STATUS}")
        except ClientError as error:
            if code_of(error) == "NoSuchKey":
                return None
            raise
        text: str = answer["Body"].read(64).decode()
    return text.strip()


def _fetch(s3: Any, bucket: str, prefix: str, folder: Path) -> None:
    """All that the machine uploaded, but for checkpoints, which stay in S3."""
    from boto3.s3.transfer import TransferConfig

    plain = TransferConfig(preferred_transfer_client="classic")  # the other one ignores AWS_ENDPOINT_URL
    with translate_aws_error(f"fetching s3://{bucket}/{prefix}"):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(f"{prefix}/")
                target = folder / name
                if not name or name.endswith(".pt") or not target.resolve().is_relative_to(folder.resolve()):
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                s3.download_file(bucket, entry["Key"], str(target), Config=plain)


def _show_summary(folder: Path) -> None:
    path = folder / "run" / "summary.txt"
    if path.is_file():
        print(path.read_text(errors="replace"), end="")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that what must be done at its end is done."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
