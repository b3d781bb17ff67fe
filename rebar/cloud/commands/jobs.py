"""``batch register|submit`` and ``sagemaker submit``."""

import argparse
from typing import Any

from rebar.cloud.batch import register, submit
from rebar.cloud.batch_definition import Definition
from rebar.cloud.commands.parsers import add_command, add_group, add_identity, clients_of, identity_of, positive
from rebar.cloud.container import WRITE_JOB, Container, secret_arns, training_container
from rebar.cloud.errors import CloudError
from rebar.cloud.instances import BY_NAME, InstanceType, instance_type, require_room
from rebar.cloud.plan import mode_of
from rebar.cloud.s3_urls import s3_folder
from rebar.cloud.sagemaker import DATA_FOLDER, RUN_FOLDER, TrainingJob, submit_training
from rebar.cloud.tags import Identity

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/rebar:1"
S3 = "--data s3://my-bucket/betons --results s3://my-bucket/runs"
ROLE = "arn:aws:iam::123456789012:role/rebar-job"


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
    _add_work(define)
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

    sagemaker = add_group(groups, "sagemaker", "Training as a job of SageMaker.")
    start = add_command(
        sagemaker,
        "submit",
        _sagemaker,
        "Submit a training job; run again, it finds the one under way, or goes on from its checkpoint.",
        f"sagemaker submit --run g5-16 --image {IMAGE} \\\n      {S3} \\\n"
        f"      --instance-type g5.12xlarge --max-hours 3 --spot --role-arn {ROLE} --yes",
    )
    add_identity(start, "train", may_expire=False)
    _add_work(start)
    start.add_argument("--role-arn", required=True, help="ARN of the role that SageMaker takes on (docs/aws.md)")
    start.add_argument("--spot", action="store_true", help="managed spot training: cheaper, and goes on by itself")
    start.add_argument("--max-wait-hours", type=float, help="on spot, with waiting; default: twice --max-hours")
    start.add_argument(
        "--input-mode",
        choices=("File", "FastFile"),
        default="File",
        help="copy the data first, or read them from S3 while training, which is slow (default: %(default)s)",
    )
    start.add_argument(
        "--data-gb", type=positive, default=70, help="size of the data, for the volume (default: %(default)s)"
    )


def _add_work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", required=True, help="Rebar's image in ECR, made with scripts/Dockerfile")
    parser.add_argument("--data", required=True, help="s3://… folder with train.beton and val.beton, or pictures")
    parser.add_argument(
        "--results", required=True, help="s3://… folder; an earlier attempt's checkpoint is found there"
    )
    parser.add_argument("--instance-type", metavar="TYPE", help=", ".join(BY_NAME))
    parser.add_argument("--nodes", type=positive, default=1, help="machines that train together (default: %(default)s)")
    parser.add_argument("--max-hours", type=float, required=True, help="each attempt ends after them")
    parser.add_argument("--config", help="recipe or machine; default: the machine's in rn50_configs/")
    parser.add_argument("flags", nargs="*", help="flags of train_imagenet.py (or write_dataset.py), after --")


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


def _sagemaker(options: argparse.Namespace) -> None:
    machine = _machine(options)
    data, results = s3_folder(options.data, "--data"), s3_folder(options.results, "--results")
    if machine.nvme_gb:
        require_room(machine, options.data_gb)
    job = TrainingJob(
        identity_of(options),
        training_container(
            options.image,
            machine,
            config=options.config or f"rn50_configs/{machine.config}",
            flags=options.flags,
            environment={"RUN_FOLDER": RUN_FOLDER, "DATA_FOLDER": DATA_FOLDER},
            secrets={},
        ),
        machine,
        options.role_arn,
        data,
        results,
        options.max_hours,
        options.nodes,
        options.spot,
        options.max_wait_hours,
        options.input_mode,
        min(options.data_gb + 50, machine.nvme_gb or options.data_gb + 50),
    )
    submit_training(clients_of(options), job, mode_of(options))


def _training(options: argparse.Namespace, identity: Identity, region: str) -> tuple[Container, str]:
    machine = _machine(options)
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
        raise CloudError("--shards needs no GPU: leave out --instance-type and --config, give --vcpus and --memory-gib")
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


def _machine(options: argparse.Namespace) -> InstanceType:
    if not options.instance_type:
        raise CloudError("--instance-type is missing")
    return instance_type(options.instance_type)
