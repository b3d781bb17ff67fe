"""The EC2 instance metadata service, version 2: a PUT request gets a token, which every GET request sends.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
``AWS_EC2_METADATA_SERVICE_ENDPOINT`` overrides the address, as for AWS's own tools.
"""

import os
import urllib.error
import urllib.request

ENDPOINT = "http://169.254.169.254"
ANSWER_SECONDS = 2.0
SPOT_NOTICE = "spot/instance-action"
"""Exists from two minutes before EC2 interrupts a spot instance."""
_ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
_TOKEN_SECONDS = "21600"  # the maximum
_LONGEST_ANSWER = 1 << 16
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # without a proxy


def endpoint_is_given() -> bool:
    """Return whether the environment sets the address of the service."""
    return bool(os.environ.get(_ENDPOINT_VARIABLE))


class InstanceMetadata:
    """A client of one endpoint, which renews its token when it expires."""

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = (endpoint or os.environ.get(_ENDPOINT_VARIABLE) or ENDPOINT).rstrip("/")
        self._token: str | None = None

    def get(self, name: str) -> str | None:
        """Return the value at ``latest/meta-data/NAME``; None if it does not exist.

        Raises OSError if the service cannot be reached or refuses, ValueError if the address is not valid.
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
            return self._ask(f"latest/meta-data/{name}", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
        return None

    def _new_token(self) -> str:
        seconds = {"X-aws-ec2-metadata-token-ttl-seconds": _TOKEN_SECONDS}
        return self._ask("latest/api/token", seconds, method="PUT")

    def _ask(self, path: str, headers: dict[str, str], method: str = "GET") -> str:
        request = urllib.request.Request(f"{self.endpoint}/{path}", headers=headers, method=method)
        with _direct.open(request, timeout=ANSWER_SECONDS) as answer:
            return str(answer.read(_LONGEST_ANSWER).decode()).strip()
