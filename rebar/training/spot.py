"""EC2's notice that a spot machine will be taken away in two minutes.

The instance metadata service, version 2: a token is PUT for, then ``spot/instance-action`` is asked every
few seconds; it is missing (404) until the machine is to go.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rebar.cli import warn

_ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
_ENDPOINT = "http://169.254.169.254"
_TOKEN_SECONDS = "21600"  # the longest that is allowed
_TIMEOUT = 2.0
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would ask its own machine


def endpoint_is_given() -> bool:
    """Whether the environment names a metadata service to ask."""
    return bool(os.environ.get(_ENDPOINT_VARIABLE))


class MetadataService:
    """Asks one endpoint, with a token that is renewed where the service no longer takes it."""

    def __init__(self, endpoint: str | None = None) -> None:
        chosen = endpoint or os.environ.get(_ENDPOINT_VARIABLE) or _ENDPOINT
        self.endpoint = chosen.rstrip("/")
        self._token: str | None = None

    def instance_action(self) -> str | None:
        """The notice (JSON with action and time), or None. Raises OSError where the service does not answer."""
        for _ in range(2):
            self._token = self._token or self._new_token()
            try:
                return self._ask("latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token})
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401:
                    raise
                self._token = None
        return None

    def _new_token(self) -> str:
        seconds = {"X-aws-ec2-metadata-token-ttl-seconds": _TOKEN_SECONDS}
        return self._ask("latest/api/token", seconds, method="PUT")

    def _ask(self, path: str, headers: dict[str, str], method: str = "GET") -> str:
        request = urllib.request.Request(f"{self.endpoint}/{path}", headers=headers, method=method)
        with _direct.open(request, timeout=_TIMEOUT) as answer:
            return str(answer.read().decode())


@contextmanager
def watch_for_notice(on_notice: Callable[[], None], *, every_seconds: float = 5.0) -> Iterator[None]:
    """Ask for the notice in a thread meanwhile; ``on_notice`` is called once, in that thread."""
    service, over = MetadataService(), threading.Event()

    def watch() -> None:
        answered = True
        while not over.is_set():
            try:
                if service.instance_action() is not None:
                    on_notice()
                    return
                answered = True
            except (OSError, ValueError) as error:
                if answered:  # once, not every few seconds
                    warn(f"{service.endpoint} does not answer: a spot interruption would not be noticed ({error})")
                answered = False
            over.wait(every_seconds)

    watcher = threading.Thread(target=watch, name="rebar-spot-notice", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(timeout=2 * _TIMEOUT)
