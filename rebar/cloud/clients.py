"""boto3's clients, configured once.

The endpoint is the environment's (``AWS_ENDPOINT_URL``, ``AWS_ENDPOINT_URL_EC2`` …) and so is the number of attempts
(``AWS_MAX_ATTEMPTS``): neither is set here, for what is set in code wins over the environment.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rebar.cloud.errors import CloudError, told_clearly

CONNECT_SECONDS, READ_SECONDS = 10, 60
CONNECTIONS = 64


@dataclass(frozen=True)
class Clients:
    """The AWS services in one region; None: the region of the environment or of the AWS configuration."""

    region: str | None = None

    def __call__(self, service: str) -> Any:
        """A client of a service; raises CloudError without boto3 or region."""
        with told_clearly(f"connecting to {service}"):
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
            raise CloudError("boto3 is missing: pip install 'rebar[aws]' (or: pip install boto3)") from None
        return boto3.session.Session(region_name=self.region)
