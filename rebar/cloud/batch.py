"""AWS Batch: a definition is registered where it is new; a job is submitted where none of its name waits or runs."""

from collections.abc import Mapping
from typing import Any

from rebar.cloud.batch_definition import Definition, is_the_same, job_name
from rebar.cloud.clients import Clients
from rebar.cloud.errors import CloudError, told_clearly
from rebar.cloud.instances import BY_NAME, PRICES_FROM
from rebar.cloud.plan import Call, Mode, Step, agreed
from rebar.cloud.tags import PREFIX, Identity, as_list, require_ours

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
    if not agreed(mode, f"job definition {definition.identity}", steps):
        return None
    answer = Call(clients("batch"), "register_job_definition", request).send("registering a job definition")
    print(f"registered {answer['jobDefinitionArn']}")
    return str(answer["jobDefinitionArn"])


def newest_definition(clients: Clients, identity: Identity) -> Mapping[str, Any] | None:
    """The newest active revision of a run's definition; raises CloudError where it is not ours."""
    name = job_name(identity)
    with told_clearly(f"looking for the job definition {name}"):
        pages = (
            clients("batch").get_paginator("describe_job_definitions").paginate(jobDefinitionName=name, status="ACTIVE")
        )
        found = [each for page in pages for each in page["jobDefinitions"]]
    if not found:
        return None
    newest: Mapping[str, Any] = max(found, key=lambda each: int(each["revision"]))
    require_ours({"Tags": as_list(newest.get("tags") or {})}, name, identity.project)
    return newest


def submit(clients: Clients, identity: Identity, queue: str, mode: Mode) -> str | None:
    """Submit a job of a run's definition, or find the one that waits or runs; its id, None where only a plan was shown.

    Raises CloudError where the queue does not suit it: several nodes on spot, a queue that takes no jobs.
    """
    definition = newest_definition(clients, identity)
    if definition is None:
        raise CloudError(f"there is no job definition {job_name(identity)}: batch register first")
    name = job_name(identity)
    kinds = _require_queue(clients, queue, several_nodes=definition["type"] == "multinode")
    existing = _unfinished(clients, queue, name)
    if len(existing) > 1:
        raise CloudError(
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
    if not agreed(mode, f"job {identity}", steps):
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
    with told_clearly(f"looking at the job queue {queue}"):
        found = batch.describe_job_queues(jobQueues=[queue])["jobQueues"]
        if not found:
            raise CloudError(f"there is no job queue {queue} in this region (docs/aws.md says how to make one)")
        if found[0]["state"] != "ENABLED":
            raise CloudError(
                f"the job queue {queue} is {found[0]['state']}: aws batch update-job-queue --state ENABLED"
            )
        names = [each["computeEnvironment"] for each in found[0]["computeEnvironmentOrder"]]
        environments = batch.describe_compute_environments(computeEnvironments=names)["computeEnvironments"]
    resources = [each.get("computeResources") or {} for each in environments]
    kinds = sorted({str(each.get("type", "unmanaged")) for each in resources})
    if several_nodes and set(kinds) != {"EC2"}:
        raise CloudError(
            f"the queue {queue} has machines of {', '.join(kinds)}: AWS Batch runs several nodes on demand (EC2) only"
        )
    if any(kind.startswith("FARGATE") for kind in kinds):
        raise CloudError(f"the queue {queue} is Fargate's, which has no GPUs")
    for environment, each in zip(environments, resources, strict=True):
        if each.get("minvCpus"):
            print(
                f"warning: {environment['computeEnvironmentName']} keeps {each['minvCpus']} vCPUs running, and "
                "costing, while there are no jobs: set minvCpus to 0"
            )
    return kinds


def _unfinished(clients: Clients, queue: str, name: str) -> dict[str, str]:
    """The jobs of a name that wait or run, and their status."""
    with told_clearly(f"looking for jobs called {name}"):
        pages = (
            clients("batch")
            .get_paginator("list_jobs")
            .paginate(jobQueue=queue, filters=[{"name": "JOB_NAME", "values": [name]}])
        )
        jobs = [each for page in pages for each in page["jobSummaryList"]]
    return {each["jobId"]: each["status"] for each in jobs if each["jobName"] == name and each["status"] in UNFINISHED}
