"""A client of the EC2 instance metadata service, version 2, which authenticates GET requests with a session token.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
``AWS_EC2_METADATA_SERVICE_ENDPOINT`` overrides the address, as for AWS's SDKs.
"""

import os
import urllib.error
import urllib.request

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
    """A client of one endpoint. Renews its token when it expires."""

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
