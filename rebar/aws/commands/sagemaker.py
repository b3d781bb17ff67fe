"""``sagemaker submit``."""

import argparse
from typing import Any

from rebar.aws.commands.job_options import IMAGE, ROLE, S3, add_work, machine_of
from rebar.aws.commands.parsers import add_command, add_group, add_identity, clients_of, identity_of, positive
from rebar.aws.instances import require_room
from rebar.aws.plan import mode_of
from rebar.aws.s3_transfer import s3_folder
from rebar.aws.sagemaker import DATA_FOLDER, RUN_FOLDER, TrainingJob, submit_training, training_container


def add(groups: Any) -> None:
    """Declare the command."""
    group = add_group(groups, "sagemaker", "Training as a job of SageMaker.")
    start = add_command(
        group,
        "submit",
        _submit,
        "Submit a training job; run again, it finds the one under way, or goes on from its checkpoint.",
        f"sagemaker submit --run g5-16 --image {IMAGE} \\\n      {S3} \\\n"
        f"      --instance-type g5.12xlarge --max-hours 3 --spot --role-arn {ROLE} --yes",
    )
    add_identity(start, "train", may_expire=False)
    add_work(start)
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


def _submit(options: argparse.Namespace) -> None:
    machine = machine_of(options)
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
