"""AWS's errors become one line with a code, without secrets."""

import pytest
from botocore.exceptions import ClientError

from rebar.storage.aws import AwsError, redact_secrets, translate_aws_error


@pytest.mark.parametrize(
    "secret",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "https://bucket.s3.amazonaws.com/key?X-Amz-Credential=AKIA%2F20261121&X-Amz-Signature=0a1b2c3d",
        "aws_secret_access_key=wJalrXUtnFEMI",
        "X-Amz-Security-Token=FwoGZXIvYXdzEBYaD",
        "You may not. Encoded authorization failure message: c2VjcmV0",
    ],
)
def test_redact_secrets_removes_keys_and_signatures(secret: str) -> None:
    output = redact_secrets(f"it failed: {secret}")
    assert output.startswith("it failed: ")
    for part in ("EXAMPLE", "0a1b2c3d", "2F20261121", "wJalrXUtnFEMI", "FwoGZXIvYXdzEBYaD", "c2VjcmV0"):
        assert part not in output


def test_translate_aws_error_adds_advice() -> None:
    answer = {"Error": {"Code": "InsufficientInstanceCapacity", "Message": "We have none."}}
    with (
        pytest.raises(AwsError, match=r"launching: AWS answered .* none\. .*Try another zone"),
        translate_aws_error("launching"),
    ):
        raise ClientError(answer, "RunInstances")


def test_translate_aws_error_does_not_change_aws_errors() -> None:
    with pytest.raises(AwsError, match=r"^as it is$"), translate_aws_error("doing"):
        raise AwsError("as it is", code="aws-error")
