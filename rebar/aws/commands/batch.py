"""``batch register|submit``."""

import argparse
from typing import Any

from rebar.aws.batch import Definition, register, submit
from rebar.aws.client import AwsError
from rebar.aws.commands.job_options import IMAGE, ROLE, S3, add_work, machine_of
from rebar.aws.commands.parsers import add_command, add_group, add_identity, clients_of, identity_of, positive
from rebar.aws.plan import mode_of
from rebar.aws.s3_transfer import s3_folder
from rebar.aws.sagemaker import WRITE_JOB, Container, secret_arns, training_container
from rebar.aws.tags import Identity


def add(groups: Any) -> None:
    """Declare the commands."""
    batch = add_group(groups, "batch", "Training, and writing in parallel, as jobs of AWS Batch.")
    define = add_command(
        batch,
        "register",
        _register,
        "Register a job definition: training on one node, on several (--nodes), or the parts of a .beton (--shards). "
        "One that is the same already is not registered again.",
        f"batch register --run g5-16 --image {IMAGE} \\\n      {S3} \\\n"
        f"      --instance-type g5.12xlarge --max-hours 3 --attempts 5 --job-role {ROLE} --yes",
    )
    add_identity(define, "train", may_expire=False)
    add_work(define)
    define.add_argument("--job-role", required=True, help="ARN of the role that the container has (docs/aws.md)")
    define.add_argument("--execution-role", help="ARN of the role with which Batch fetches secrets")
    define.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME=ARN",
        help="environment variable from Secrets Manager, such as WANDB_API_KEY=arn:aws:secretsmanager:…",
    )
    define.add_argument(
        "--attempts",
        type=positive,
        default=1,
        help="starts altogether: again after a spot interruption, not after a mistake (default: %(default)s)",
    )
    define.add_argument("--shards", type=positive, default=0, metavar="N", help="write a .beton in N parts instead")
    define.add_argument("--vcpus", type=positive, default=8, help="of each part's task (default: %(default)s)")
    define.add_argument("--memory-gib", type=positive, default=16, help="of each part's task (default: %(default)s)")
    define.add_argument("--scratch", metavar="FOLDER", help="the host's folder for data, on its NVMe disks")

    send = add_command(
        batch,
        "submit",
        _submit,
        "Submit a job of the run's definition; run again, it finds the one that waits or runs.",
        "batch submit --run g5-16 --queue rebar-spot --yes",
    )
    send.add_argument("--run", dest="run_name", required=True, metavar="NAME", help="as it was registered")
    send.add_argument("--role", default="train", help="as it was registered (default: %(default)s)")
    send.add_argument("--queue", required=True, help="job queue: on spot for one node, on demand for several")


def _register(options: argparse.Namespace) -> None:
    clients = clients_of(options)
    identity = identity_of(options)
    region = clients("batch").meta.region_name
    container, machine = (_writing if options.shards else _training)(options, identity, region)
    definition = Definition(
        identity,
        container,
        options.job_role,
        options.execution_role,
        options.max_hours,
        options.attempts,
        options.nodes,
        options.shards,
        machine,
        options.scratch,
    )
    register(clients, definition, mode_of(options))


def _submit(options: argparse.Namespace) -> None:
    identity = Identity(options.project, options.run_name, options.role)
    submit(clients_of(options), identity, options.queue, mode_of(options))


def _training(options: argparse.Namespace, identity: Identity, region: str) -> tuple[Container, str]:
    machine = machine_of(options)
    results = s3_folder(options.results, "--results")
    environment = {
        "AWS_DEFAULT_REGION": region,
        "DATA": str(s3_folder(options.data, "--data")),
        "RUN_PLACE": f"{results}/{identity.project}/{identity.run}",
        "DATA_FOLDER": "/scratch/rebar-data" if options.scratch else "",
    }
    container = training_container(
        options.image,
        machine,
        config=options.config or f"rn50_configs/{machine.config}",
        flags=options.flags,
        environment=environment,
        secrets=secret_arns(options.secret),
    )
    return container, machine.name


def _writing(options: argparse.Namespace, identity: Identity, region: str) -> tuple[Container, str]:
    if options.instance_type or options.config:
        raise AwsError("--shards needs no GPU: leave out --instance-type and --config, give --vcpus and --memory-gib")
    environment = {
        "AWS_DEFAULT_REGION": region,
        "SHARDS": str(options.shards),
        "RESULTS": str(s3_folder(options.results, "--results")),
        "WORK_FOLDER": "/scratch/rebar-work" if options.scratch else "",
    }
    command = (WRITE_JOB, "--data-dir", options.data, *options.flags)
    memory = options.memory_gib * 1024
    secrets = secret_arns(options.secret)
    return Container(options.image, command, environment, options.vcpus, memory, secrets=secrets), ""
