"""boto3 clients whose errors become AwsError, and programs of the operating system that are run with the same care.

Endpoint and number of attempts come from the environment (``AWS_ENDPOINT_URL``, ``AWS_MAX_ATTEMPTS``): values set in
code would override it.
"""

import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rebar.errors import RebarError


class AwsError(RebarError):
    """An AWS command cannot be completed."""


ADVICE = {
    "AuthFailure": "Check the credentials: aws sts get-caller-identity.",
    "ExpiredToken": "The session has expired. Log in again (aws sso login).",
    "ExpiredTokenException": "The session has expired. Log in again (aws sso login).",
    "InsufficientInstanceCapacity": "This zone has no capacity for the instance type. Try another zone, or try later.",
    "InvalidClientTokenId": "Check the credentials: aws sts get-caller-identity.",
    "MaxSpotInstanceCountExceeded": "Request a higher spot quota in Service Quotas.",
    "OptInRequired": "Enable this service or region for the account.",
    "RequestExpired": "The clock of this machine is wrong. Set it (timedatectl).",
    "RequestLimitExceeded": "AWS throttles this account. Wait a minute and run the command again.",
    "UnauthorizedOperation": "Add the permission: see the IAM policies in docs/aws.md.",
    "AccessDenied": "Add the permission: see the IAM policies in docs/aws.md.",
    "AccessDeniedException": "Add the permission: see the IAM policies in docs/aws.md.",
    "VcpuLimitExceeded": "Request a higher vCPU quota in Service Quotas.",
}
SECRETS = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"  # access key ids
    r"|(?<=X-Amz-Signature=)[0-9a-fA-F]+|(?<=X-Amz-Security-Token=)[^&\s]+|(?<=X-Amz-Credential=)[^&\s]+"
    r"|(?i:(?<=aws_secret_access_key=)|(?<=aws_session_token=)|(?<=_token=)|(?<=_key=)|(?<=password=))\S+"
)
ENCODED = re.compile(r"\s*Encoded authorization failure message:\s*\S+")
BOTO3_MISSING = "boto3 is not installed. Run pip install 'ffcv-rebar[aws]'."


def without_secrets(text: str) -> str:
    """Replace access keys, signatures and tokens in a text by ``***``."""
    return SECRETS.sub("***", ENCODED.sub("", text))


def code_of(error: Exception) -> str:
    """Return AWS's error code, such as ``InvalidVolume.NotFound``; empty for exceptions of other kinds."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


@contextmanager
def translate_aws_error(doing: str) -> Iterator[None]:
    """Turn boto3's exceptions into an AwsError whose message starts with ``doing``."""
    try:
        from botocore import exceptions, parsers
    except ImportError:
        raise AwsError(BOTO3_MISSING, code="aws-boto3-missing") from None
    try:
        yield
    except exceptions.ClientError as error:
        code, message = code_of(error), error.response.get("Error", {}).get("Message", "")
        advice = ADVICE.get(code.split(".")[0], "")
        text = f"{doing}: AWS answered {code}: {without_secrets(message)}".rstrip(".: ")
        raise AwsError(f"{text}. {advice}".rstrip(), code="aws-request-refused") from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        advice = "Run 'aws configure' or 'aws sso login', or attach an IAM role to the machine."
        raise AwsError(f"{doing}: no AWS credentials. {advice}", code="aws-credentials-missing") from None
    except exceptions.NoRegionError:
        raise AwsError(f"{doing}: no region. Set --region or AWS_DEFAULT_REGION.", code="aws-region-missing") from None
    except exceptions.WaiterError as error:
        reason = without_secrets(str(error))
        advice = "Check the AWS console, then run the command again."
        raise AwsError(f"{doing}: {reason}. {advice}", code="aws-wait-failed") from None
    except parsers.ResponseParserError:
        advice = "Check AWS_ENDPOINT_URL and the proxy."
        raise AwsError(f"{doing}: the response is not from AWS. {advice}", code="aws-unreachable") from None
    except (exceptions.BotoCoreError, exceptions.HTTPClientError) as error:
        raise AwsError(f"{doing}: {without_secrets(str(error))}", code="aws-unreachable") from None


CONNECT_SECONDS, READ_SECONDS = 10, 60
CONNECTIONS = 64


@dataclass(frozen=True)
class Clients:
    """Create boto3 clients in one region; None: the region of the environment or of the AWS configuration."""

    region: str | None = None

    def __call__(self, service: str) -> Any:
        """Return a client of a service; raises AwsError without boto3 or region."""
        with translate_aws_error(f"connecting to {service}"):
            from botocore.config import Config

            config = Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                max_pool_connections=CONNECTIONS,
                retries={"mode": "standard"},
                user_agent_extra="rebar",
            )
            return self._session.client(service, config=config)

    @cached_property
    def ec2(self) -> Any:
        """The client of EC2."""
        return self("ec2")

    @cached_property
    def _session(self) -> Any:
        try:
            import boto3
        except ImportError:
            raise AwsError(BOTO3_MISSING, code="aws-boto3-missing") from None
        return boto3.session.Session(region_name=self.region)


def call(doing: str, method: Callable[..., Any], /, *, none_if: Sequence[str] = (), **parameters: Any) -> Any:
    """Call a method of a client; return None if AWS answers with one of the error codes ``none_if``."""
    with translate_aws_error(doing):
        try:
            return method(**parameters)
        except Exception as error:
            if code_of(error) in none_if:
                return None
            raise


PAGE = 100


def paginate(doing: str, client: Any, operation: str, key: str, **parameters: Any) -> list[Any]:
    """Return the items under ``key`` from all pages of an operation."""
    with translate_aws_error(doing):
        pages = client.get_paginator(operation).paginate(**parameters, PaginationConfig={"PageSize": PAGE})
        found: list[Any] = pages.build_full_result().get(key, [])
        return found


POLL_SECONDS = 5.0


def wait(doing: str, client: Any, waiter: str, *, minutes: float, **parameters: Any) -> None:
    """Wait with one of boto3's waiters; raises AwsError after ``minutes``, and if the resource fails."""
    config = {"Delay": POLL_SECONDS, "MaxAttempts": math.ceil(60 * minutes / POLL_SECONDS)}
    with translate_aws_error(doing):
        client.get_waiter(waiter).wait(**parameters, WaiterConfig=config)


PACKAGES = {
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_repair": "xfsprogs",
    "mdadm": "mdadm",
}


def run_program(*words: str, accept: tuple[int, ...] = (0,)) -> "subprocess.CompletedProcess[str]":
    """Run a program; raises AwsError if it is not installed, or if its exit status is not in ``accept``."""
    if shutil.which(words[0]) is None:
        package = PACKAGES.get(words[0], "util-linux")
        text = f"{words[0]} is not installed. Run apt-get install {package}."
        raise AwsError(text, code="program-missing")
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode not in accept:
        reason = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise AwsError(f"{' '.join(words)}: exit status {done.returncode}: {reason}", code="program-failed")
    return done
