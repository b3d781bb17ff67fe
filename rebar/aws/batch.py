"""``batch register|submit``: train on one or several nodes, or write a .beton in parallel, with AWS Batch.

https://docs.aws.amazon.com/batch/latest/userguide/job_definitions.html
"""

import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from rebar.aws.commands import Aws, Step, argument, call, command, paginate, positive
from rebar.aws.instances import BY_NAME, PRICE_SOURCE, instance_type
from rebar.aws.jobs import JOB, JOB_EXAMPLE, ROLE, TRAIN_JOB, WRITE_JOB, require_no_secrets, training_arguments
from rebar.aws.tags import PREFIX, Identity, as_tag_list, identity_of, require_project_tags, run_prefix
from rebar.storage.aws import AwsError
from rebar.storage.s3 import S3Prefix

SECRET_ARN = re.compile(
    r"([A-Za-z_]\w*)=(arn:aws[\w-]*:(?:secretsmanager:[^:\s]+:\d{12}:secret:|ssm:[^:\s]+:\d{12}:parameter/)\S+)"
)
MAX_ATTEMPTS = 10
MAX_SHM_MIB = 16 * 1024
"""Size of /dev/shm, which NCCL uses."""
RETRIES = [
    {"onStatusReason": "Host EC2*", "action": "RETRY"},  # spot interruption
    {"onExitCode": "75", "action": "RETRY"},  # interrupted, checkpoint saved
    {"onReason": "*", "action": "EXIT"},  # a failure is not retried
]
UNFINISHED = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")


def job_name(identity: Identity) -> str:
    """Return the name of a run's definition and jobs; raises AwsError if Batch does not allow it."""
    name = f"{identity.project}-{identity.run}-{identity.role}"
    if "." in name or len(name) > 128:
        text = f"job name {name!r} is invalid for AWS Batch: 128 letters, digits, '-' and '_'. Use another --run."
        raise AwsError(text, code="aws-name-invalid")
    return name


def _definition(options: Namespace, identity: Identity, region: str) -> dict[str, Any]:
    """Return the parameters of RegisterJobDefinition for the options of ``batch register``."""
    if not 1 <= options.attempts <= MAX_ATTEMPTS:
        raise AwsError(f"--attempts must be 1 to {MAX_ATTEMPTS}.", code="aws-option-invalid")
    if options.max_hours * 3600 < 60:
        raise AwsError("--max-hours must be at least a minute.", code="aws-option-invalid")
    if options.secret and not options.execution_role:
        text = "--secret needs --execution-role, with which Batch reads the secret (docs/aws.md)."
        raise AwsError(text, code="aws-option-invalid")
    container = _container(options, region)
    more = {"instance_type": options.instance_type} if options.instance_type else {}
    if options.shards:
        more["shards"] = str(options.shards)
    common = {
        "jobDefinitionName": job_name(identity),
        "timeout": {"attemptDurationSeconds": round(options.max_hours * 3600)},
        "retryStrategy": {"attempts": options.attempts, "evaluateOnExit": RETRIES},
        "tags": identity.tags(**more),
        "propagateTags": True,
    }
    if options.nodes == 1:
        return {**common, "type": "container", "platformCapabilities": ["EC2"], "containerProperties": container}
    every_node = {"targetNodes": "0:", "container": {**container, "instanceType": options.instance_type}}
    nodes = {"numNodes": options.nodes, "mainNode": 0, "nodeRangeProperties": [every_node]}
    return {**common, "type": "multinode", "nodeProperties": nodes}


def _container(options: Namespace, region: str) -> dict[str, Any]:
    """Return the container that trains, or writes one shard of a .beton."""
    command, environment, needs = _writing(options) if options.shards else _training(options)
    environment["AWS_DEFAULT_REGION"] = region
    properties: dict[str, Any] = {
        "image": options.image,
        "command": command,
        "jobRoleArn": options.job_role,
        "resourceRequirements": [{"type": kind, "value": str(value)} for kind, value in needs.items()],
        "environment": [{"name": name, "value": value} for name, value in environment.items() if value],
        "secrets": [_secret(each) for each in options.secret],
        "linuxParameters": {"sharedMemorySize": min(MAX_SHM_MIB, needs["MEMORY"] // 2)},
    }
    if options.execution_role:
        properties["executionRoleArn"] = options.execution_role
    if options.scratch:
        properties["volumes"] = [{"name": "scratch", "host": {"sourcePath": options.scratch}}]
        properties["mountPoints"] = [{"sourceVolume": "scratch", "containerPath": "/scratch"}]
    return properties


Work = tuple[list[str], dict[str, str], dict[str, int]]
"""Command, environment, and requirements of a container."""


def _training(options: Namespace) -> Work:
    """Train on the complete instance, except 10 % of its memory for the system."""
    machine = instance_type(options.instance_type)
    environment = {
        "DATA": str(S3Prefix.parse(options.data, "--data")),
        "RUN_URL": str(run_prefix(options)),
        "DATA_FOLDER": "/scratch/rebar-data" if options.scratch else "",
    }
    needs = {"VCPU": machine.vcpus, "MEMORY": machine.memory_gib * 1024 * 9 // 10, "GPU": machine.gpus}
    return [TRAIN_JOB, *training_arguments(options)], environment, needs


def _writing(options: Namespace) -> Work:
    """Write one shard of a .beton."""
    if options.instance_type or options.config or options.nodes > 1:
        text = "--shards does not use GPUs. Omit --instance-type, --config and --nodes; use --vcpus and --memory-gib."
        raise AwsError(text, code="aws-option-invalid")
    environment = {
        "SHARDS": str(options.shards),
        "RESULTS": str(S3Prefix.parse(options.results, "--results")),
        "WORK_FOLDER": "/scratch/rebar-work" if options.scratch else "",
    }
    command = [WRITE_JOB, "--data-dir", options.data, *options.flags]
    require_no_secrets([options.image, *command], "Set --secret NAME=arn:…")
    return command, environment, {"VCPU": options.vcpus, "MEMORY": options.memory_gib * 1024}


def _secret(text: str) -> dict[str, str]:
    match = SECRET_ARN.fullmatch(text)
    if match is None:
        text = f"--secret {text.partition('=')[0]}=… is not an ARN. Use NAME=arn:aws:secretsmanager:…"
        raise AwsError(text, code="aws-option-invalid")
    return {"name": match[1], "valueFrom": match[2]}


@command(
    "batch register",
    f"{JOB_EXAMPLE} --attempts 5 --job-role {ROLE} --yes",
    *JOB,
    argument("--job-role", required=True, help="ARN of the container's role (docs/aws.md)"),
    argument("--execution-role", help="ARN of the role with which Batch reads secrets"),
    argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME=ARN",
        help="environment variable from Secrets Manager, such as WANDB_API_KEY=arn:aws:secretsmanager:…",
    ),
    argument(
        "--attempts",
        type=positive,
        default=1,
        help="number of attempts; only spot interruptions are retried (default: %(default)s)",
    ),
    argument("--shards", type=positive, default=0, metavar="N", help="write a .beton in N shards instead of training"),
    argument("--vcpus", type=positive, default=8, help="vCPUs per shard (default: %(default)s)"),
    argument("--memory-gib", type=positive, default=16, help="memory per shard (default: %(default)s)"),
    argument("--scratch", metavar="FOLDER", help="folder of the host for data, on its NVMe disks"),
)
def _register(aws: Aws, options: Namespace) -> None:
    """Register a job definition: for training on one node, on several (--nodes), or writing a .beton (--shards).

    An unchanged definition is not registered again.
    """
    identity, batch = identity_of(options), aws("batch")
    request = _definition(options, identity, batch.meta.region_name)
    newest = _newest_definition(aws, identity)
    if newest is not None and _contains(newest, request):
        print(f"{newest['jobDefinitionArn']} is unchanged")
        return
    nodes = request.get("nodeProperties")
    container = nodes["nodeRangeProperties"][0]["container"] if nodes else request["containerProperties"]
    needs = ", ".join(f"{each['type']} {each['value']}" for each in container["resourceRequirements"])
    verb = "register a new revision of" if newest else "register"
    steps = [
        Step(f"{verb} the job definition {request['jobDefinitionName']}: {container['image']}, {needs}"),
        Step(f"it runs {' '.join(container['command'])}"),
        Step(f"registering is free; {_max_cost(request)}"),
    ]
    if aws.confirm(f"job definition {identity}", steps):
        answer = call("registering a job definition", batch.register_job_definition, **request)
        print(f"registered {answer['jobDefinitionArn']}")


def _newest_definition(aws: Aws, identity: Identity) -> Mapping[str, Any] | None:
    """Return the newest active revision of a run's definition; raises AwsError if it is not the project's."""
    name = job_name(identity)
    action, operation = f"describing the job definition {name}", "describe_job_definitions"
    batch = aws("batch")
    found = paginate(action, batch, operation, "jobDefinitions", jobDefinitionName=name, status="ACTIVE")
    if not found:
        return None
    newest: Mapping[str, Any] = max(found, key=lambda each: int(each["revision"]))
    require_project_tags({"Tags": as_tag_list(newest.get("tags") or {})}, name, identity.project)
    return newest


def _contains(found: Any, requested: Any, key: str = "") -> bool:
    """Return whether AWS's description contains all requested values. AWS adds defaults and reorders lists."""
    if isinstance(requested, Mapping):
        return all(name in found and _contains(found[name], value, name) for name, value in requested.items())
    if isinstance(requested, list) and requested and isinstance(requested[0], Mapping):
        return len(found) == len(requested) and all(any(_contains(each, one) for each in found) for one in requested)
    if key == "action":  # AWS returns it in lower case
        found = str(found).upper()
    return bool(found == requested)


@command(
    "batch submit",
    "--run g5-16 --queue rebar-spot --yes",
    argument("--run", dest="run_name", required=True, metavar="NAME", help="as registered"),
    argument("--role", default="train", help="as registered (default: %(default)s)"),
    argument("--queue", required=True, help="job queue: spot for one node, on-demand for several"),
)
def _submit(aws: Aws, options: Namespace) -> None:
    """Submit a job with the run's definition. A repeated call finds the unfinished job."""
    identity, queue, batch = identity_of(options), options.queue, aws("batch")
    name, newest = job_name(identity), _newest_definition(aws, identity)
    if newest is None:
        raise AwsError(f"job definition {name} does not exist. Run batch register first.", code="aws-not-found")
    kinds = _require_queue(batch, queue, multi_node=newest["type"] == "multinode")
    by_name = [{"name": "JOB_NAME", "values": [name]}]
    jobs = paginate(f"listing jobs of {name}", batch, "list_jobs", "jobSummaryList", jobQueue=queue, filters=by_name)
    unfinished = [each for each in jobs if each["jobName"] == name and each["status"] in UNFINISHED]
    if len(unfinished) > 1:
        ids = ", ".join(each["jobId"] for each in unfinished)
        text = f"several jobs are called {name}: {ids}. Terminate all but one (aws batch terminate-job)."
        raise AwsError(text, code="aws-ambiguous")
    if unfinished:
        print(f"{unfinished[0]['jobId']} exists already: {name}, {unfinished[0]['status']}")
        return
    request: dict[str, Any] = {
        "jobName": name,
        "jobQueue": queue,
        "jobDefinition": newest["jobDefinitionArn"],
        "tags": dict(newest["tags"]),
        "propagateTags": True,
    }
    shards = int(newest["tags"].get(PREFIX + "shards", 0))
    if shards > 1:
        request["arrayProperties"] = {"size": shards}
    tasks = f"{shards} tasks of " if shards > 1 else ""
    text = f"submit {tasks}{name} (revision {newest['revision']}) to the queue {queue} ({', '.join(kinds)})"
    if aws.confirm(f"job {identity}", [Step(text), Step(_max_cost(newest))]):
        answer = call(f"submitting {name}", batch.submit_job, **request)
        print(f"submitted {answer['jobId']}; its log: aws batch describe-jobs --jobs {answer['jobId']}")


def _max_cost(definition: Mapping[str, Any]) -> str:
    """Return the maximum cost of a job of this definition as text."""
    hours = definition["timeout"]["attemptDurationSeconds"] / 3600
    attempts = definition["retryStrategy"]["attempts"]
    nodes = definition["nodeProperties"]["numNodes"] if definition["type"] == "multinode" else 1
    machine = BY_NAME.get(definition["tags"].get(PREFIX + "instance-type", ""))
    shards = int(definition["tags"].get(PREFIX + "shards", 1))
    each = f"{attempts} attempts of {hours:g} h" if attempts > 1 else f"{hours:g} h"
    if shards > 1:
        each = f"{shards} tasks, each {each}"
    if machine is None:
        return f"a job takes at most {each}, on instances that the queue chooses"
    dollars = attempts * hours * nodes * machine.price
    on = f"{nodes} × {machine.name}" if nodes > 1 else machine.name
    return f"a job takes at most {each} on {on}: at most ${dollars:.2f} (list price of {PRICE_SOURCE}; spot is cheaper)"


def _require_queue(batch: Any, queue: str, *, multi_node: bool) -> list[str]:
    """Return a queue's types of instances (``SPOT``, ``EC2``). Warns if it keeps instances running without jobs."""
    found = call(f"describing the job queue {queue}", batch.describe_job_queues, jobQueues=[queue])["jobQueues"]
    if not found:
        text = f"job queue {queue} does not exist in this region. Create it: see docs/aws.md."
        raise AwsError(text, code="aws-not-found")
    if found[0]["state"] != "ENABLED":
        text = f"job queue {queue} is {found[0]['state']}. Run aws batch update-job-queue --state ENABLED."
        raise AwsError(text, code="job-queue-unsuitable")
    names = [each["computeEnvironment"] for each in found[0]["computeEnvironmentOrder"]]
    describe = batch.describe_compute_environments
    answer = call(f"describing the job queue {queue}", describe, computeEnvironments=names)
    kinds = set()
    for environment in answer["computeEnvironments"]:
        resources = environment.get("computeResources") or {}
        kinds.add(str(resources.get("type", "unmanaged")))
        if resources.get("minvCpus"):
            name, cpus = environment["computeEnvironmentName"], resources["minvCpus"]
            print(f"warning: {name} keeps {cpus} vCPUs running without jobs. Set minvCpus to 0.")
    if (multi_node and kinds != {"EC2"}) or any(kind.startswith("FARGATE") for kind in kinds):
        text = f"job queue {queue} has {', '.join(sorted(kinds))} instances"
        advice = "Multi-node jobs need on-demand instances (EC2), and training cannot run on Fargate."
        raise AwsError(f"{text}. {advice}", code="job-queue-unsuitable")
    return sorted(kinds)
