"""What a machine on EC2 can ask of itself: the instance metadata service, version 2.

A token is PUT for, and goes with every question after it.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
``AWS_EC2_METADATA_SERVICE_ENDPOINT`` means what it means to AWS's own tools.
"""

import os
import urllib.error
import urllib.request

ENDPOINT = "http://169.254.169.254"
ANSWER_SECONDS = 2.0
SPOT_NOTICE = "spot/instance-action"
"""Missing until a spot machine is to be taken away."""
_ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
_TOKEN_SECONDS = "21600"  # the longest that is allowed
_LONGEST_ANSWER = 1 << 16
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would ask its own machine


def endpoint_is_given() -> bool:
    """Whether the environment names a metadata service to ask."""
    return bool(os.environ.get(_ENDPOINT_VARIABLE))


class InstanceMetadata:
    """Asks one endpoint, with a token that is renewed where the service no longer takes it."""

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = (endpoint or os.environ.get(_ENDPOINT_VARIABLE) or ENDPOINT).rstrip("/")
        self._token: str | None = None

    def get(self, name: str) -> str | None:
        """The value at ``latest/meta-data/NAME``, None where there is none.

        Raises OSError where the service does not answer, or refuses to, and ValueError where it is none.
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
