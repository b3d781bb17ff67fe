"""The script a rented machine runs at its first boot, filled in; never with a secret in it.

Renting a machine that ends by itself: it switches itself off, and a scheduler outside it terminates it.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rebar.aws.capacity import require_offered, require_quota
from rebar.aws.client import SECRETS, AwsError, Clients, code_of, translate_aws_error
from rebar.aws.cost import EBS_GB_MONTH, HOURS_A_MONTH
from rebar.aws.instances import PRICES_FROM, InstanceType
from rebar.aws.plan import Call, Mode, Step, confirm_plan
from rebar.aws.snapshots import SNAPSHOT_ID
from rebar.aws.sweep import find_instances
from rebar.aws.tags import Identity, create_once, now, only_one, specification

TEMPLATE = Path(__file__).with_name("user_data.sh")
LARGEST_BYTES = 16_384  # EC2's limit
S3_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s]*)?")
SECRET = re.compile(r"[A-Za-z_]\w*=/[\w./-]+")
SUSPICIOUS = re.compile(
    r"(?i)(?:api[_-]?key|secret|token|passw(?:or)?d)[\w-]*[= ](?!/|\$)[^\s/]{8,}"  # --wandb-api-key=0123…
    r"|\bhf_[A-Za-z0-9]{20,}|://[^/\s:@]*:[^/\s@]+@"  # Hugging Face's; https://user:password@…
)


@dataclass(frozen=True)
class Job:
    """What a machine is to do. ``data``: an ``s3://`` folder with train.beton and val.beton, a snapshot, or empty."""

    project: str
    run: str
    region: str
    source: str
    """Where Rebar comes from: a git URL, or an ``s3://`` tar.gz."""
    data: str
    results: str
    """An ``s3://`` folder: checkpoints and logs go to, and come back from, its ``run/``."""
    command: Sequence[str]
    max_minutes: int
    revision: str = ""
    secrets: Sequence[str] = ()
    """``NAME=/parameter/store/name``: put into the environment on the machine."""

    @property
    def results_of_run(self) -> str:
        """The run's own ``s3://`` folder."""
        return f"{self.results.rstrip('/')}/{self.project}/{self.run}"


def training_command(config: str, flags: Sequence[str]) -> tuple[str, ...]:
    """``train_imagenet.py`` on all GPUs of the machine, with the data and the run's folder of the script."""
    line = (
        "exec ./scripts/torchrun_from_env.sh train_imagenet.py --config-file "
        + shlex.quote(config)
        + ' --data.train_dataset "$DATA_FOLDER/train.beton" --data.val_dataset "$DATA_FOLDER/val.beton"'
        + ' --logging.folder "$RUN_FOLDER" '
        + shlex.join(flags)
    )
    return ("bash", "-c", line.rstrip())


def render(job: Job) -> str:
    """The script; raises AwsError for what cannot be, and for what looks like a secret."""
    for what, url in (("--results", job.results), ("--data", job.data)):
        if not S3_URL.fullmatch(url) and (what == "--results" or url.startswith("s3:")):
            raise AwsError(f"{what} must be an s3:// folder, not {url!r}")
    if job.data and not job.data.startswith("s3:") and not SNAPSHOT_ID.fullmatch(job.data):
        raise AwsError(f"--data must be an s3:// folder or snap-…, not {job.data!r}")
    for secret in job.secrets:
        if not SECRET.fullmatch(secret):
            name = secret.partition("=")[0]
            raise AwsError(f"--secret {name}=…: give NAME=/name/in/parameter/store, never the value itself")
    variables = {
        "project": job.project,
        "run": job.run,
        "region": job.region,
        "source": job.source,
        "revision": job.revision,
        "data": job.data.rstrip("/"),
        "results": job.results_of_run,
        "max_minutes": str(job.max_minutes),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    lines.append(f"secret_names=({shlex.join(job.secrets)})")
    lines.append("# shellcheck disable=SC2016  # its variables are set where it runs")
    lines.append(f"command=({shlex.join(job.command)})")
    filled = "\n".join(lines)
    given = " ".join([job.run, job.source, job.revision, job.data, job.results, *job.command])
    if SECRETS.search(given) or SUSPICIOUS.search(given):
        raise AwsError(
            "something in the command looks like a secret, and user data can be read by everybody on the machine: "
            "put it into SSM's parameter store (aws ssm put-parameter --type SecureString) and give --secret NAME=/name"
        )
    script = TEMPLATE.read_text().replace("#VARIABLES#", filled)
    if len(script.encode()) > LARGEST_BYTES:
        raise AwsError(f"the script has {len(script.encode())} bytes, EC2 takes {LARGEST_BYTES}: shorten the command")
    return script


GPU_AMI = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
"""AWS's Deep Learning Base AMI: Ubuntu 22.04 with NVIDIA's open driver."""
TERMINATE = "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances"
GRACE = timedelta(minutes=10)
NEW_FOR = timedelta(minutes=5)
"""How long a machine that cannot be described is taken for one that is too new, not for one that has ended."""


@dataclass(frozen=True)
class Rental:
    """What to rent. ``root_gb``: size of the system disk, which goes with the machine."""

    identity: Identity
    machine: InstanceType
    user_data: str
    instance_profile: str
    scheduler_role: str
    max_hours: float
    spot: bool = False
    image: str | None = None
    subnet: str | None = None
    zone: str | None = None
    security_groups: Sequence[str] = ()
    key_name: str | None = None
    root_gb: int = 100

    def request(self, image: str) -> dict[str, Any]:
        """The parameters of RunInstances, without a client token."""
        tags = self.identity.tags()
        optional = {
            "SubnetId": self.subnet,
            "KeyName": self.key_name,
            "SecurityGroupIds": list(self.security_groups) or None,
            "Placement": {"AvailabilityZone": self.zone} if self.zone else None,
            "InstanceMarketOptions": {
                "MarketType": "spot",
                "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
            }
            if self.spot
            else None,
        }
        return {
            "ImageId": image,
            "InstanceType": self.machine.name,
            "MinCount": 1,
            "MaxCount": 1,
            "UserData": self.user_data,
            "InstanceInitiatedShutdownBehavior": "terminate",
            "IamInstanceProfile": _profile(self.instance_profile),
            "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled", "HttpPutResponseHopLimit": 1},
            "BlockDeviceMappings": [
                {
                    "DeviceName": "/dev/sda1",
                    "Ebs": {"VolumeSize": self.root_gb, "VolumeType": "gp3", "DeleteOnTermination": True},
                }
            ],
            "TagSpecifications": [specification(kind, tags) for kind in ("instance", "volume")],
            **{key: value for key, value in optional.items() if value is not None},
        }


def launch(clients: Clients, rental: Rental, mode: Mode) -> str | None:
    """Rent the machine, or find the one an earlier call rented; its id, or None where only the plan was shown.

    A machine that the scheduler could not be told to end is terminated at once.
    """
    identity, machine = rental.identity, rental.machine
    existing = only_one(find_instances(clients, identity.key), "InstanceId", f"machine {identity}")
    if existing is not None:
        instance_id = str(existing["InstanceId"])
        if existing["InstanceType"] != machine.name:
            raise AwsError(f"{identity.run} runs already on {instance_id}, a {existing['InstanceType']}")
        print(f"{instance_id} exists already: {existing['InstanceType']}, {existing['State']['Name']}")
        if mode is Mode.DO:
            _end_later_or_now(clients, rental, instance_id)
        return instance_id
    require_offered(clients, machine, rental.zone)
    require_quota(clients, machine, spot=rental.spot)
    image = rental.image or newest_image(clients)
    request = rental.request(image)
    if not confirm_plan(mode, f"machine {identity}", _steps(clients, rental, request)):
        return None
    launched: dict[str, datetime] = {}
    instance_id = create_once(
        lambda token: _run(clients, request, token, launched),
        lambda instance_id: _is_gone(clients, instance_id, launched[instance_id]),
        request,
    )
    print(f"rented {instance_id}", flush=True)
    _end_later_or_now(clients, rental, instance_id)
    return instance_id


def newest_image(clients: Clients) -> str:
    """AWS's newest image with an NVIDIA driver in the region."""
    with translate_aws_error("looking for AWS's image with an NVIDIA driver (--image names another)"):
        return str(clients("ssm").get_parameter(Name=GPU_AMI)["Parameter"]["Value"])


def terminate(clients: Clients, instance_id: str) -> None:
    """End a machine now."""
    Call(clients.ec2, "terminate_instances", {"InstanceIds": [instance_id]}).send(f"terminating {instance_id}")
    print(f"terminated {instance_id}", flush=True)


def _steps(clients: Clients, rental: Rental, request: Mapping[str, Any]) -> list[Step]:
    machine, hours = rental.machine, rental.max_hours
    most = hours * (machine.price + rental.root_gb * EBS_GB_MONTH["gp3"] / HOURS_A_MONTH)
    price = f"${machine.price:.3f} an hour (list price of {PRICES_FROM}{'; spot is cheaper' if rental.spot else ''})"
    return [
        Step(
            f"rent a {machine.name} ({machine.gpus} × {machine.gpu}){' on spot' if rental.spot else ''}: {price}",
            Call(clients.ec2, "run_instances", request),
        ),
        Step(f"it switches itself off, and so ends, when it is done or after {hours:g} h: at most ${most:.2f}"),
        Step(f"EventBridge Scheduler terminates it {GRACE.total_seconds() / 60:.0f} minutes later if it still exists"),
    ]


def _run(clients: Clients, request: Mapping[str, Any], token: str, launched: dict[str, datetime]) -> str:
    answer = Call(clients.ec2, "run_instances", {**request, "ClientToken": token}).send("renting a machine")
    instance = answer["Instances"][0]
    launched[instance["InstanceId"]] = instance["LaunchTime"]
    return str(instance["InstanceId"])


def _is_gone(clients: Clients, instance_id: str, launched: datetime) -> bool:
    """Whether a machine has ended; an hour later EC2 does not know it any more."""
    from botocore.exceptions import ClientError

    with translate_aws_error(f"looking at {instance_id}"):
        try:
            reservations = clients.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
        except ClientError as error:
            if code_of(error) == "InvalidInstanceID.NotFound":
                return now() - launched > NEW_FOR
            raise
    states = [each["State"]["Name"] for reservation in reservations for each in reservation["Instances"]]
    return states == ["terminated"] or states == ["shutting-down"]


def _end_later_or_now(clients: Clients, rental: Rental, instance_id: str) -> None:
    try:
        _schedule_end(clients, rental, instance_id)
    except BaseException:
        print(f"{instance_id} cannot be scheduled to end: it is terminated now", flush=True)
        terminate(clients, instance_id)
        raise


def _schedule_end(clients: Clients, rental: Rental, instance_id: str) -> None:
    """Have AWS terminate the machine; a second call keeps the first one's time."""
    from botocore.exceptions import ClientError

    end = now() + timedelta(hours=rental.max_hours) + GRACE
    request = {
        "Name": f"rebar-{instance_id}",
        "ScheduleExpression": f"at({end:%Y-%m-%dT%H:%M:%S})",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {
            "Arn": TERMINATE,
            "RoleArn": rental.scheduler_role,
            "Input": json.dumps({"InstanceIds": [instance_id]}),
        },
    }
    with translate_aws_error(f"scheduling the end of {instance_id}"):
        try:
            clients("scheduler").create_schedule(**request)
            print(f"{instance_id} ends at {end:%Y-%m-%d %H:%M} UTC at the latest")
        except ClientError as error:
            if code_of(error) != "ConflictException":
                raise
            print(f"{instance_id} is scheduled to end already")


def _profile(name: str) -> dict[str, str]:
    return {"Arn": name} if name.startswith("arn:") else {"Name": name}
