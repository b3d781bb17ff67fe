"""What AWS answers becomes one line, without secrets."""

import pytest
from botocore.exceptions import ClientError

from rebar.aws.client import AwsError, translate_aws_error, without_secrets


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
def test_secrets_are_taken_out(secret: str) -> None:
    told = without_secrets(f"it failed: {secret}")
    assert told.startswith("it failed: ")
    for part in ("EXAMPLE", "0a1b2c3d", "2F20261121", "wJalrXUtnFEMI", "FwoGZXIvYXdzEBYaD", "c2VjcmV0"):
        assert part not in told


def test_known_codes_say_what_to_do() -> None:
    answer = {"Error": {"Code": "InsufficientInstanceCapacity", "Message": "We have none."}}
    with (
        pytest.raises(AwsError, match=r"renting: AWS answered .* none; .*try another zone"),
        translate_aws_error("renting"),
    ):
        raise ClientError(answer, "RunInstances")


def test_our_own_messages_pass_unchanged() -> None:
    with pytest.raises(AwsError, match=r"^as it is$"), translate_aws_error("doing"):
        raise AwsError("as it is")
