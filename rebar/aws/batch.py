"""Job definitions of AWS Batch: on one node on spot, on several on demand, or as an array of small tasks.

https://docs.aws.amazon.com/batch/latest/userguide/job_definitions.html

AWS Batch: a definition is registered where it is new; a job is submitted where none of its name waits or runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rebar.aws.client import AwsError, Clients, translate_aws_error
from rebar.aws.instances import BY_NAME, PRICES_FROM
from rebar.aws.plan import Call, Mode, Step, confirm_plan
from rebar.aws.sagemaker import Container
from rebar.aws.tags import PREFIX, Identity, as_list, require_our_tags

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
            raise AwsError(f"--attempts must be from 1 to {MOST_ATTEMPTS}: AWS Batch allows no more")
        if self.max_hours * 3600 < 60:
            raise AwsError("--max-hours must be at least a minute: AWS Batch allows no less")
        if self.container.secrets and not self.execution_role:
            raise AwsError("--secret needs --execution-role: the role with which Batch fetches them (docs/aws.md)")
        if self.shards and self.nodes > 1:
            raise AwsError("choose one of --nodes and --shards")

    @property
    def name(self) -> str:
        """Of the definition, and of the jobs made of it. Raises AwsError where Batch takes no such name."""
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
    """What AWS calls the run; raises AwsError where its names cannot hold it."""
    name = f"{identity.project}-{identity.run}-{identity.role}"
    if "." in name or len(name) > 128:
        raise AwsError(
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


UNFINISHED = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")


def register(clients: Clients, definition: Definition, mode: Mode) -> str | None:
    """Register a definition, or find that it is the newest one already; its ARN, None where only the plan was shown."""
    request = definition.request()
    newest = newest_definition(clients, definition.identity)
    if newest is not None and is_the_same(newest, request):
        print(f"{newest['jobDefinitionArn']} is the same already")
        return str(newest["jobDefinitionArn"])
    container = definition.container
    what = "register a new revision of" if newest else "register"
    needs = f"{container.vcpus} vCPUs, {container.memory / 1024:.0f} GiB" + (
        f", {container.gpus} GPUs" if container.gpus else ""
    )
    steps = [
        Step(f"{what} the job definition {definition.name}: {container.image}, {needs}"),
        Step(f"it runs {' '.join(container.command)}"),
        Step("registering costs nothing; " + most_it_costs(request)),
    ]
    if not confirm_plan(mode, f"job definition {definition.identity}", steps):
        return None
    answer = Call(clients("batch"), "register_job_definition", request).send("registering a job definition")
    print(f"registered {answer['jobDefinitionArn']}")
    return str(answer["jobDefinitionArn"])


def newest_definition(clients: Clients, identity: Identity) -> Mapping[str, Any] | None:
    """The newest active revision of a run's definition; raises AwsError where it is not ours."""
    name = job_name(identity)
    with translate_aws_error(f"looking for the job definition {name}"):
        pages = (
            clients("batch").get_paginator("describe_job_definitions").paginate(jobDefinitionName=name, status="ACTIVE")
        )
        found = [each for page in pages for each in page["jobDefinitions"]]
    if not found:
        return None
    newest: Mapping[str, Any] = max(found, key=lambda each: int(each["revision"]))
    require_our_tags({"Tags": as_list(newest.get("tags") or {})}, name, identity.project)
    return newest


def submit(clients: Clients, identity: Identity, queue: str, mode: Mode) -> str | None:
    """Submit a job of a run's definition, or find the one that waits or runs; its id, None where only a plan was shown.

    Raises AwsError where the queue does not suit it: several nodes on spot, a queue that takes no jobs.
    """
    definition = newest_definition(clients, identity)
    if definition is None:
        raise AwsError(f"there is no job definition {job_name(identity)}: batch register first")
    name = job_name(identity)
    kinds = _require_queue(clients, queue, several_nodes=definition["type"] == "multinode")
    existing = _unfinished(clients, queue, name)
    if len(existing) > 1:
        raise AwsError(
            f"several jobs are called {name}: {', '.join(existing)}; end all but one (aws batch terminate-job)"
        )
    if existing:
        ((job_id, status),) = existing.items()
        print(f"{job_id} exists already: {name}, {status}")
        return job_id
    tags = dict(definition["tags"])
    request = {
        "jobName": name,
        "jobQueue": queue,
        "jobDefinition": definition["jobDefinitionArn"],
        "tags": tags,
        "propagateTags": True,
    }
    shards = int(tags.get(PREFIX + "shards", 0))
    if shards > 1:
        request["arrayProperties"] = {"size": shards}
    what = f"{shards} tasks of " if shards > 1 else ""
    steps = [
        Step(f"submit {what}{name} (revision {definition['revision']}) to the queue {queue} ({', '.join(kinds)})"),
        Step(most_it_costs(definition)),
    ]
    if not confirm_plan(mode, f"job {identity}", steps):
        return None
    answer = Call(clients("batch"), "submit_job", request).send(f"submitting {name}")
    print(f"submitted {answer['jobId']}; its log: aws batch describe-jobs --jobs {answer['jobId']}")
    return str(answer["jobId"])


def most_it_costs(definition: Mapping[str, Any]) -> str:
    """The most that a job of this definition costs, in words."""
    hours = definition["timeout"]["attemptDurationSeconds"] / 3600
    attempts = definition["retryStrategy"]["attempts"]
    nodes = definition["nodeProperties"]["numNodes"] if definition["type"] == "multinode" else 1
    machine = BY_NAME.get(definition["tags"].get(PREFIX + "instance-type", ""))
    shards = int(definition["tags"].get(PREFIX + "shards", 1))
    each = f"{attempts} attempts of {hours:g} h" if attempts > 1 else f"{hours:g} h"
    if shards > 1:
        each = f"{shards} tasks, each {each}"
    if machine is None:
        return f"a job takes at most {each}, of machines that the queue chooses: see their price"
    dollars = attempts * hours * nodes * machine.price
    on = f"{nodes} × {machine.name}" if nodes > 1 else machine.name
    return f"a job takes at most {each} on {on}: at most ${dollars:.2f} (list price of {PRICES_FROM}; spot is cheaper)"


def _require_queue(clients: Clients, queue: str, *, several_nodes: bool) -> list[str]:
    """The kinds of machines behind a queue (``SPOT``, ``EC2``); warns of those that cost while nothing runs."""
    batch = clients("batch")
    with translate_aws_error(f"looking at the job queue {queue}"):
        found = batch.describe_job_queues(jobQueues=[queue])["jobQueues"]
        if not found:
            raise AwsError(f"there is no job queue {queue} in this region (docs/aws.md says how to make one)")
        if found[0]["state"] != "ENABLED":
            raise AwsError(f"the job queue {queue} is {found[0]['state']}: aws batch update-job-queue --state ENABLED")
        names = [each["computeEnvironment"] for each in found[0]["computeEnvironmentOrder"]]
        environments = batch.describe_compute_environments(computeEnvironments=names)["computeEnvironments"]
    resources = [each.get("computeResources") or {} for each in environments]
    kinds = sorted({str(each.get("type", "unmanaged")) for each in resources})
    if several_nodes and set(kinds) != {"EC2"}:
        raise AwsError(
            f"the queue {queue} has machines of {', '.join(kinds)}: AWS Batch runs several nodes on demand (EC2) only"
        )
    if any(kind.startswith("FARGATE") for kind in kinds):
        raise AwsError(f"the queue {queue} is Fargate's, which has no GPUs")
    for environment, each in zip(environments, resources, strict=True):
        if each.get("minvCpus"):
            print(
                f"warning: {environment['computeEnvironmentName']} keeps {each['minvCpus']} vCPUs running, and "
                "costing, while there are no jobs: set minvCpus to 0"
            )
    return kinds


def _unfinished(clients: Clients, queue: str, name: str) -> dict[str, str]:
    """The jobs of a name that wait or run, and their status."""
    with translate_aws_error(f"looking for jobs called {name}"):
        pages = (
            clients("batch")
            .get_paginator("list_jobs")
            .paginate(jobQueue=queue, filters=[{"name": "JOB_NAME", "values": [name]}])
        )
        jobs = [each for page in pages for each in page["jobSummaryList"]]
    return {each["jobId"]: each["status"] for each in jobs if each["jobName"] == name and each["status"] in UNFINISHED}
