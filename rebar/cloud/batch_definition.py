"""Job definitions of AWS Batch: on one node on spot, on several on demand, or as an array of small tasks.

https://docs.aws.amazon.com/batch/latest/userguide/job_definitions.html
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rebar.cloud.container import Container
from rebar.cloud.errors import CloudError
from rebar.cloud.tags import Identity

MOST_ATTEMPTS = 10
LARGEST_SHM = 16 * 1024
"""MiB of /dev/shm, where NCCL's processes meet."""
AGAIN = [
    {"onStatusReason": "Host EC2*", "action": "RETRY"},  # the machine was taken back
    {"onExitCode": "75", "action": "RETRY"},  # interrupted, all is saved
    {"onReason": "*", "action": "EXIT"},  # a mistake is not repeated
]


@dataclass(frozen=True)
class Definition:
    """What is registered. ``instance_type``: of the nodes, where there are several; ``scratch``: a host's folder."""

    identity: Identity
    container: Container
    job_role: str
    execution_role: str | None
    max_hours: float
    attempts: int = 1
    nodes: int = 1
    shards: int = 0
    """How many tasks an array job has; 0: it is none."""
    instance_type: str = ""
    scratch: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= MOST_ATTEMPTS:
            raise CloudError(f"--attempts must be from 1 to {MOST_ATTEMPTS}: AWS Batch allows no more")
        if self.max_hours * 3600 < 60:
            raise CloudError("--max-hours must be at least a minute: AWS Batch allows no less")
        if self.container.secrets and not self.execution_role:
            raise CloudError("--secret needs --execution-role: the role with which Batch fetches them (docs/aws.md)")
        if self.shards and self.nodes > 1:
            raise CloudError("choose one of --nodes and --shards")

    @property
    def name(self) -> str:
        """Of the definition, and of the jobs made of it. Raises CloudError where Batch takes no such name."""
        return job_name(self.identity)

    def request(self) -> dict[str, Any]:
        """The parameters of RegisterJobDefinition."""
        more = {"instance_type": self.instance_type} if self.instance_type else {}
        if self.shards:
            more["shards"] = str(self.shards)
        common = {
            "jobDefinitionName": self.name,
            "timeout": {"attemptDurationSeconds": round(self.max_hours * 3600)},
            "retryStrategy": {"attempts": self.attempts, "evaluateOnExit": AGAIN},
            "tags": self.identity.tags(**more),
            "propagateTags": True,
        }
        if self.nodes == 1:
            return {
                **common,
                "type": "container",
                "platformCapabilities": ["EC2"],
                "containerProperties": self._container(),
            }
        every_node = {"targetNodes": "0:", "container": {**self._container(), "instanceType": self.instance_type}}
        nodes = {"numNodes": self.nodes, "mainNode": 0, "nodeRangeProperties": [every_node]}
        return {**common, "type": "multinode", "nodeProperties": nodes}

    def _container(self) -> dict[str, Any]:
        container = self.container
        needs = {"VCPU": container.vcpus, "MEMORY": container.memory, "GPU": container.gpus}
        properties: dict[str, Any] = {
            "image": container.image,
            "command": list(container.command),
            "jobRoleArn": self.job_role,
            "resourceRequirements": [{"type": kind, "value": str(value)} for kind, value in needs.items() if value],
            "environment": [{"name": name, "value": value} for name, value in container.environment.items() if value],
            "secrets": [{"name": name, "valueFrom": arn} for name, arn in container.secrets.items()],
            "linuxParameters": {"sharedMemorySize": min(LARGEST_SHM, container.memory // 2)},
        }
        if self.execution_role:
            properties["executionRoleArn"] = self.execution_role
        if self.scratch:
            properties["volumes"] = [{"name": "scratch", "host": {"sourcePath": self.scratch}}]
            properties["mountPoints"] = [{"sourceVolume": "scratch", "containerPath": "/scratch"}]
        return properties


def job_name(identity: Identity) -> str:
    """What AWS calls the run; raises CloudError where its names cannot hold it."""
    name = f"{identity.project}-{identity.run}-{identity.role}"
    if "." in name or len(name) > 128:
        raise CloudError(
            f"{name!r}: AWS Batch's names are letters, digits, '-' and '_' (at most 128): choose another --run"
        )
    return name


def is_the_same(registered: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a definition that AWS describes says all that is wanted; AWS adds what it does by default."""
    return all(key in registered and _contains(registered[key], value) for key, value in wanted.items())


def _contains(found: Any, wanted: Any, key: str = "") -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            name in found and _contains(found[name], value, name) for name, value in wanted.items()
        )
    if isinstance(wanted, list) and wanted and isinstance(wanted[0], Mapping):  # AWS may order them anew
        return len(found) == len(wanted) and all(any(_contains(each, one) for each in found) for one in wanted)
    if key == "action":  # AWS answers in small letters
        return bool(str(found).upper() == wanted)
    return bool(found == wanted)
