"""What AWS answers, as one message for a person, without secrets.

boto3's clients, configured once.

The endpoint is the environment's (``AWS_ENDPOINT_URL``, ``AWS_ENDPOINT_URL_EC2`` …) and so is the number of attempts
(``AWS_MAX_ATTEMPTS``): neither is set here, for what is set in code wins over the environment.

Waiting for AWS, never for ever.

Programs of the system, with their errors told.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from rebar.errors import RebarError


class AwsError(RebarError):
    """Something in the cloud, or on the machine beside it, that stops a command."""


ADVICE = {
    "AuthFailure": "check the credentials: aws sts get-caller-identity",
    "ExpiredToken": "the session has expired: log in again (aws sso login)",
    "ExpiredTokenException": "the session has expired: log in again (aws sso login)",
    "InsufficientInstanceCapacity": "AWS has no such machine free in this zone now: try another zone, or later",
    "InvalidClientTokenId": "check the credentials: aws sts get-caller-identity",
    "MaxSpotInstanceCountExceeded": "the account's spot quota is used up: ask for more in Service Quotas",
    "OptInRequired": "the account has not enabled this service or region",
    "RequestExpired": "this machine's clock is wrong: set it (timedatectl)",
    "RequestLimitExceeded": "AWS throttles this account: wait a minute and run the command again",
    "UnauthorizedOperation": "the IAM policy in docs/aws.md names what is needed",
    "AccessDenied": "the IAM policy in docs/aws.md names what is needed",
    "AccessDeniedException": "the IAM policy in docs/aws.md names what is needed",
    "VcpuLimitExceeded": "the account's vCPU quota is used up: ask for more in Service Quotas",
}
SECRETS = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"  # access key ids
    r"|(?<=X-Amz-Signature=)[0-9a-fA-F]+|(?<=X-Amz-Security-Token=)[^&\s]+|(?<=X-Amz-Credential=)[^&\s]+"
    r"|(?i:(?<=aws_secret_access_key=)|(?<=aws_session_token=)|(?<=_token=)|(?<=_key=)|(?<=password=))\S+"
)
ENCODED = re.compile(r"\s*Encoded authorization failure message:\s*\S+")


def without_secrets(text: str) -> str:
    """The text with keys, signatures and tokens replaced by ``***``."""
    return SECRETS.sub("***", ENCODED.sub("", text))


def code_of(error: Exception) -> str:
    """AWS's error code, such as ``InvalidVolume.NotFound``; empty for other errors."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


@contextmanager
def translate_aws_error(doing: str) -> Iterator[None]:
    """Turn what boto3 raises into a AwsError that says what was being done, and what to do."""
    try:
        from botocore import exceptions, parsers
    except ImportError:
        raise AwsError("boto3 is missing: pip install 'ffcv-rebar[aws]' (or: pip install boto3)") from None
    try:
        yield
    except exceptions.ClientError as error:
        code, message = code_of(error), error.response.get("Error", {}).get("Message", "")
        advice = ADVICE.get(code.split(".")[0]) or ADVICE.get(code)
        text = f"{doing}: AWS answered {code}: {without_secrets(message)}"
        raise AwsError(f"{text.rstrip('.')}; {advice}" if advice else text) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        raise AwsError(
            f"{doing}: no AWS credentials: run 'aws configure' or 'aws sso login', or give the machine an IAM role"
        ) from None
    except exceptions.NoRegionError:
        raise AwsError(f"{doing}: no region: give --region, or set AWS_DEFAULT_REGION") from None
    except parsers.ResponseParserError:
        raise AwsError(
            f"{doing}: what answered is not AWS (a proxy's page?): check AWS_ENDPOINT_URL and the proxy"
        ) from None
    except (exceptions.BotoCoreError, exceptions.HTTPClientError) as error:
        raise AwsError(f"{doing}: {without_secrets(str(error))}") from None


CONNECT_SECONDS, READ_SECONDS = 10, 60
CONNECTIONS = 64


@dataclass(frozen=True)
class Clients:
    """The AWS services in one region; None: the region of the environment or of the AWS configuration."""

    region: str | None = None

    def __call__(self, service: str) -> Any:
        """A client of a service; raises AwsError without boto3 or region."""
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
        """EC2, which all commands about volumes and machines use."""
        return self("ec2")

    @cached_property
    def _session(self) -> Any:
        try:
            import boto3
        except ImportError:
            raise AwsError("boto3 is missing: pip install 'ffcv-rebar[aws]' (or: pip install boto3)") from None
        return boto3.session.Session(region_name=self.region)


T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds


def wait_until(what: str, look: Callable[[], T], done: Callable[[T], bool], *, seconds: float) -> T:
    """Look again and again until ``done``; tells about it once a minute.

    ``look`` and ``done`` may raise to end the wait. Raises AwsError after ``seconds``.
    """
    began = told = time.monotonic()
    pause = FIRST_PAUSE
    while not done(seen := look()):
        waited = time.monotonic() - began
        if waited > seconds:
            raise AwsError(f"{what}: not after {waited:.0f} s; look in the AWS console, then run the command again")
        if time.monotonic() - told > 60:
            print(f"  waiting for {what} ({waited / 60:.0f} min)", flush=True)
            told = time.monotonic()
        time.sleep(min(pause, max(0.0, seconds - waited) + 0.01))
        pause = min(2 * pause, LONGEST_PAUSE)
    return seen


PACKAGES = {
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_repair": "xfsprogs",
    "mdadm": "mdadm",
}


def run_program(*words: str, accept: tuple[int, ...] = (0,)) -> "subprocess.CompletedProcess[str]":
    """Run a program; raises AwsError where it is missing or ends with another status than ``accept``."""
    if shutil.which(words[0]) is None:
        package = PACKAGES.get(words[0], "util-linux")
        raise AwsError(f"the program {words[0]} is missing: install {package} (apt-get install {package})")
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode not in accept:
        reason = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()[-1]
        raise AwsError(f"{' '.join(words)}: exit status {done.returncode}: {reason}")
    return done
