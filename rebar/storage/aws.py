"""Clients of AWS: boto3 with one configuration, one-line error messages without secrets, and instance metadata."""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rebar.errors import RebarError

CONNECT_SECONDS, READ_SECONDS = 10, 60
ATTEMPTS = 6
CONNECTIONS = 64


class AwsError(RebarError):
    """An AWS command cannot be completed."""


class S3NotFoundError(AwsError):
    """The object does not exist."""


_BUCKET_PERMISSIONS = (
    "The credentials need s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject and s3:DeleteObject on its "
    "objects: see the IAM policies in docs/aws.md."
)
ADVICE = {
    "403": _BUCKET_PERMISSIONS,
    "AccessDenied": _BUCKET_PERMISSIONS,
    "AccessDeniedException": "Add the permission: see the IAM policies in docs/aws.md.",
    "AuthFailure": "Check the credentials: aws sts get-caller-identity.",
    "ExpiredToken": "The session has expired. Log in again (aws sso login).",
    "ExpiredTokenException": "The session has expired. Log in again (aws sso login).",
    "InsufficientInstanceCapacity": "This zone has no capacity for the instance type. Try another zone, or try later.",
    "InvalidAccessKeyId": "Check the credentials: aws sts get-caller-identity.",
    "InvalidClientTokenId": "Check the credentials: aws sts get-caller-identity.",
    "MaxSpotInstanceCountExceeded": "Request a higher spot quota in Service Quotas.",
    "NoSuchBucket": "Create the bucket, or correct its name.",
    "OptInRequired": "Enable this service or region for the account.",
    "PermanentRedirect": "The bucket is in another region. Set AWS_DEFAULT_REGION.",
    "RequestExpired": "The clock of this machine is wrong. Set it (timedatectl).",
    "RequestLimitExceeded": "AWS throttles this account. Wait a minute and run the command again.",
    "RequestTimeTooSkewed": "The clock of this machine is wrong. Set it (timedatectl).",
    "SignatureDoesNotMatch": "Check the credentials: aws sts get-caller-identity.",
    "UnauthorizedOperation": "Add the permission: see the IAM policies in docs/aws.md.",
    "VcpuLimitExceeded": "Request a higher vCPU quota in Service Quotas.",
}
SECRETS = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"  # access key ids
    r"|(?<=X-Amz-Signature=)[0-9a-fA-F]+|(?<=X-Amz-Security-Token=)[^&\s]+|(?<=X-Amz-Credential=)[^&\s]+"
    r"|(?i:(?<=aws_secret_access_key=)|(?<=aws_session_token=)|(?<=_token=)|(?<=_key=)|(?<=password=))\S+"
    r"|(?<=://)[^/\s@]+(?=@)"  # user and password of an endpoint
)
ENCODED = re.compile(r"\s*Encoded authorization failure message:\s*\S+")


def make_client(service: str, region: str | None = None) -> Any:
    """Return a boto3 client for a service. Raises AwsError if boto3 or a region is missing.

    Credentials, endpoint and region come from the environment and the AWS configuration, as for every boto3 program
    (``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, the role of an instance). Requests are retried in botocore's standard
    mode; ``AWS_MAX_ATTEMPTS`` overrides the number of attempts.
    """
    with translate_aws_error(f"connecting to {service}"):
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": _max_attempts()},
            user_agent_extra="rebar",
        )
        return boto3.session.Session(region_name=region).client(service, config=config)


def _max_attempts() -> int:
    text = os.environ.get("AWS_MAX_ATTEMPTS") or str(ATTEMPTS)
    if not text.isdecimal() or int(text) < 1:
        raise AwsError(
            f"AWS_MAX_ATTEMPTS is {text!r}, not a positive integer. Correct or unset it.", code="aws-option-invalid"
        )
    return int(text)


def redact_secrets(text: str) -> str:
    """Replace access keys, signatures, tokens and passwords in a text with ``***``."""
    return SECRETS.sub("***", ENCODED.sub("", text))


def aws_error_code(error: Exception) -> str:
    """Return AWS's error code, such as ``InvalidVolume.NotFound``; empty for exceptions that are not from AWS."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


@contextmanager
def translate_aws_error(action: str) -> Iterator[None]:
    """Translate boto3's exceptions to an AwsError whose message starts with ``action``."""
    try:
        import boto3  # noqa: F401
        from botocore import exceptions, parsers
    except ImportError:
        raise AwsError("boto3 is not installed. Run: pip install 'ffcv-rebar[aws]'", code="aws-boto3-missing") from None
    try:
        yield
    except exceptions.ClientError as error:
        code, message = aws_error_code(error), error.response.get("Error", {}).get("Message", "")
        if code in ("404", "NoSuchKey"):
            raise S3NotFoundError(f"{action}: the object does not exist. Check the URL.", code="s3-not-found") from None
        advice = ADVICE.get(code.split(".")[0], "")
        text = f"{action}: AWS answered {code}: {redact_secrets(message)}".rstrip(".: ")
        raise AwsError(f"{text}. {advice}".rstrip(), code="aws-request-refused") from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        advice = "Run 'aws configure' or 'aws sso login', set AWS_PROFILE, or attach an IAM role to the machine."
        raise AwsError(f"{action}: no AWS credentials. {advice}", code="aws-credentials-missing") from None
    except exceptions.NoRegionError:
        raise AwsError(f"{action}: no region. Set --region or AWS_DEFAULT_REGION.", code="aws-region-missing") from None
    except exceptions.WaiterError as error:
        reason = redact_secrets(str(error))
        advice = "Check the AWS console, then run the command again."
        raise AwsError(f"{action}: {reason}. {advice}", code="aws-wait-failed") from None
    except parsers.ResponseParserError:
        advice = "Check AWS_ENDPOINT_URL and the proxy."
        raise AwsError(f"{action}: the response is not from AWS. {advice}", code="aws-unreachable") from None
    except (exceptions.BotoCoreError, exceptions.HTTPClientError) as error:
        reason = redact_secrets(str(error)).rstrip(". ")
        advice = "Check the network, the proxy and AWS_ENDPOINT_URL."
        raise AwsError(f"{action}: {reason}. {advice}", code="aws-unreachable") from None
    except ValueError as error:  # botocore raises it for an endpoint that is not a URL
        if "endpoint" not in str(error):
            raise
        reason = redact_secrets(str(error)).rstrip(". ")
        raise AwsError(f"{action}: {reason}. Correct AWS_ENDPOINT_URL.", code="aws-unreachable") from None


ENDPOINT = "http://169.254.169.254"
TIMEOUT_SECONDS = 2.0
SPOT_NOTICE = "spot/instance-action"
"""The metadata entry that appears two minutes before EC2 interrupts a spot instance."""
_ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
_TOKEN_SECONDS = "21600"  # the maximum
_MAX_RESPONSE_BYTES = 1 << 16
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # without a proxy


def has_custom_endpoint() -> bool:
    """Return whether the environment overrides the address of the service."""
    return bool(os.environ.get(_ENDPOINT_VARIABLE))


class InstanceMetadata:
    """A client of the EC2 instance metadata service, version 2. Renews its session token when it expires.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
    ``AWS_EC2_METADATA_SERVICE_ENDPOINT`` overrides the address, as for AWS's SDKs.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = (endpoint or os.environ.get(_ENDPOINT_VARIABLE) or ENDPOINT).rstrip("/")
        self._token: str | None = None

    def get(self, name: str) -> str | None:
        """Return the value at ``latest/meta-data/NAME``; None if it does not exist.

        Raises OSError if the service is unreachable or refuses the request, ValueError if the address is invalid.
        """
        try:
            return self._value(name)
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
        self._token = None
        return self._value(name)

    def _value(self, name: str) -> str | None:
        self._token = self._token or self._new_token()
        try:
            return self._request(f"latest/meta-data/{name}", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
        return None

    def _new_token(self) -> str:
        seconds = {"X-aws-ec2-metadata-token-ttl-seconds": _TOKEN_SECONDS}
        return self._request("latest/api/token", seconds, method="PUT")

    def _request(self, path: str, headers: dict[str, str], method: str = "GET") -> str:
        request = urllib.request.Request(f"{self.endpoint}/{path}", headers=headers, method=method)
        with _opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            return str(response.read(_MAX_RESPONSE_BYTES).decode()).strip()
