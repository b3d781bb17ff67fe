"""What AWS answers, as one message for a person, without secrets."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from rebar.errors import RebarError


class CloudError(RebarError):
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
def told_clearly(doing: str) -> Iterator[None]:
    """Turn what boto3 raises into a CloudError that says what was being done, and what to do."""
    try:
        from botocore import exceptions, parsers
    except ImportError:
        raise CloudError("boto3 is missing: pip install 'rebar[aws]' (or: pip install boto3)") from None
    try:
        yield
    except exceptions.ClientError as error:
        code, message = code_of(error), error.response.get("Error", {}).get("Message", "")
        advice = ADVICE.get(code.split(".")[0]) or ADVICE.get(code)
        text = f"{doing}: AWS answered {code}: {without_secrets(message)}"
        raise CloudError(f"{text.rstrip('.')}; {advice}" if advice else text) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        raise CloudError(
            f"{doing}: no AWS credentials: run 'aws configure' or 'aws sso login', or give the machine an IAM role"
        ) from None
    except exceptions.NoRegionError:
        raise CloudError(f"{doing}: no region: give --region, or set AWS_DEFAULT_REGION") from None
    except parsers.ResponseParserError:
        raise CloudError(
            f"{doing}: what answered is not AWS (a proxy's page?): check AWS_ENDPOINT_URL and the proxy"
        ) from None
    except (exceptions.BotoCoreError, exceptions.HTTPClientError) as error:
        raise CloudError(f"{doing}: {without_secrets(str(error))}") from None
