"""``launch single|multi|validate``: launch instances that shut themselves down, and schedule their termination."""

import json
import math
import shlex
import time
from argparse import Namespace
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rebar.aws import commands
from rebar.aws.commands import Aws, Step, argument, call, command, paginate, positive
from rebar.aws.instances import (
    BY_NAME,
    EBS_GB_MONTH,
    HOURS_PER_MONTH,
    PRICE_SOURCE,
    find_instances,
    instance_type,
    require_disk_space,
    require_offered,
    require_quota,
    spot_price,
)
from rebar.aws.jobs import DATA, LAUNCH_EXAMPLE, TRAINING, WORK, render, training_command
from rebar.aws.tags import (
    Identity,
    at_most_one,
    create_once,
    expiry,
    identity_arguments,
    identity_of,
    now,
    run_prefix,
    tag_specification,
)
from rebar.cli import raise_terminated
from rebar.storage.aws import AwsError
from rebar.storage.files import check_writable
from rebar.storage.s3 import S3Prefix, download

GPU_AMI = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
"""AWS's Deep Learning Base AMI: Ubuntu 22.04 with NVIDIA's open driver."""
TERMINATE_INSTANCES_ARN = "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances"
GRACE = timedelta(minutes=10)
ROLES = " \\\n      --instance-profile rebar --scheduler-role arn:aws:iam::123456789012:role/rebar-scheduler --yes"
INSTANCE = [
    argument(
        "--spot",
        action="store_true",
        help="launch on spot: cheaper, but may be interrupted; then run the command again",
    ),
    argument("--instance-profile", required=True, help="IAM instance profile of the instance (docs/aws.md)"),
    argument("--scheduler-role", required=True, help="ARN of the role that may terminate it (docs/aws.md)"),
    argument("--image", help="AMI (default: AWS's newest Deep Learning Base AMI, Ubuntu 22.04)"),
    argument("--zone", help="availability zone (default: any)"),
    argument("--subnet", help="default: the default VPC's"),
    argument(
        "--security-group", action="append", default=[], help="default: the VPC's default group; no open port is needed"
    ),
    argument("--key-name", help="key pair for SSH; not needed"),
    argument("--root-gb", type=positive, default=100, help="system disk (default: %(default)s)"),
]


@command("launch single", LAUNCH_EXAMPLE + ROLES, *TRAINING, *INSTANCE)
def _single(aws: Aws, options: Namespace) -> None:
    """Train on an instance with one GPU."""
    _train(aws, options, single=True)


@command("launch multi", LAUNCH_EXAMPLE.replace("g5.xlarge", "g5.12xlarge") + ROLES, *TRAINING, *INSTANCE)
def _multi(aws: Aws, options: Namespace) -> None:
    """Train on all GPUs of an instance with several."""
    _train(aws, options, single=False)


def _train(aws: Aws, options: Namespace, *, single: bool) -> None:
    machine = instance_type(options.instance_type)
    if single != (machine.gpus == 1):
        text = f"{machine.name} has {machine.gpus} GPU{'s' if machine.gpus > 1 else ''}"
        advice = f"Use launch {'single' if machine.gpus == 1 else 'multi'}."
        raise AwsError(f"{text}. {advice}", code="instance-type-unsuitable")
    require_disk_space(aws, machine, options.data, options.data_gb, options.root_gb)
    script = render(options, training_command(options), options.data, aws.ec2.meta.region_name)
    if options.spot:
        offer = spot_price(aws, machine)
        print(f"spot: ${offer.dollars:.4f}/h in {offer.zone}")
    launch(aws, options, script)


def _request(options: Namespace, identity: Identity, image: str, script: str) -> dict[str, Any]:
    """Return the parameters of RunInstances without client token."""
    profile = options.instance_profile
    if identity.expires is None:  # lets 'cost sweep' end it if all else fails
        identity = replace(identity, expires=expiry(math.ceil(options.max_hours / 24)))
    spot = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
    optional = {
        "SubnetId": options.subnet,
        "KeyName": options.key_name,
        "SecurityGroupIds": options.security_group or None,
        "Placement": {"AvailabilityZone": options.zone} if options.zone else None,
        "InstanceMarketOptions": {"MarketType": "spot", "SpotOptions": spot} if options.spot else None,
    }
    disk = {"VolumeSize": options.root_gb, "VolumeType": "gp3", "DeleteOnTermination": True}
    return {
        "ImageId": image,
        "InstanceType": options.instance_type,
        "MinCount": 1,
        "MaxCount": 1,
        "UserData": script,
        "InstanceInitiatedShutdownBehavior": "terminate",
        "IamInstanceProfile": {"Arn" if profile.startswith("arn:") else "Name": profile},
        "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled", "HttpPutResponseHopLimit": 1},
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
        "TagSpecifications": [tag_specification(kind, identity.tags()) for kind in ("instance", "volume")],
        **{key: value for key, value in optional.items() if value is not None},
    }


def launch(aws: Aws, options: Namespace, script: str) -> str | None:
    """Launch an instance with this user data, or find the one that an earlier call launched. Returns its id.

    Returns None if the plan was only printed. An instance whose termination cannot be scheduled is terminated at once.
    """
    identity, machine = identity_of(options), instance_type(options.instance_type)
    existing = at_most_one(find_instances(aws, identity.key), "InstanceId", f"instance {identity}")
    if existing is not None:
        instance_id = str(existing["InstanceId"])
        if existing["InstanceType"] != machine.name:
            text = f"{identity.run} already runs on {instance_id}, a {existing['InstanceType']}. Use another --run."
            raise AwsError(text, code="aws-exists-differently")
        print(f"{instance_id} exists already: {machine.name}, {existing['State']['Name']}")
        if aws.executes:
            _schedule(aws, options, instance_id)  # a killed call may have launched it only
        return instance_id
    require_offered(aws, machine, options.zone)
    require_quota(aws, machine, spot=options.spot)
    request = _request(options, identity, options.image or _newest_image(aws), script)
    cost = options.max_hours * (machine.price + options.root_gb * EBS_GB_MONTH["gp3"] / HOURS_PER_MONTH)
    price = f"${machine.price:.3f}/h (list price of {PRICE_SOURCE}{'; spot is cheaper' if options.spot else ''})"
    text = f"launch a {machine.name} ({machine.gpus} × {machine.gpu}){' on spot' if options.spot else ''}: {price}"
    step = Step(text, aws.ec2.run_instances, request)
    steps = [
        step,
        Step(f"it shuts down, and so terminates, when done or after {options.max_hours:g} h: at most ${cost:.2f}"),
        Step(f"EventBridge Scheduler terminates it {GRACE.total_seconds() / 60:.0f} minutes later if it still exists"),
    ]
    if not aws.confirm(f"instance {identity}", steps):
        return None

    def create(token: str) -> tuple[str, datetime]:
        instance = step.execute(ClientToken=token)["Instances"][0]
        return instance["InstanceId"], instance["LaunchTime"]

    instance_id = create_once(aws, "instance", create, request)
    print(f"launched {instance_id}", flush=True)
    try:
        _schedule(aws, options, instance_id)
    except BaseException:
        print(f"the termination of {instance_id} cannot be scheduled: terminating it now", flush=True)
        terminate(aws, instance_id)
        raise
    return instance_id


def _newest_image(aws: Aws) -> str:
    action = "looking for AWS's image with an NVIDIA driver (--image sets another)"
    return str(call(action, aws("ssm").get_parameter, Name=GPU_AMI)["Parameter"]["Value"])


def terminate(aws: Aws, instance_id: str) -> None:
    """Terminate an instance."""
    call(f"terminating {instance_id}", aws.ec2.terminate_instances, InstanceIds=[instance_id])
    print(f"terminated {instance_id}", flush=True)


def _schedule(aws: Aws, options: Namespace, instance_id: str) -> None:
    """Schedule the termination of an instance. An existing schedule is kept."""
    end = now() + timedelta(hours=options.max_hours) + GRACE
    answer = call(
        f"scheduling the termination of {instance_id}",
        aws("scheduler").create_schedule,
        none_if=["ConflictException"],
        Name=f"rebar-{instance_id}",
        ScheduleExpression=f"at({end:%Y-%m-%dT%H:%M:%S})",
        FlexibleTimeWindow={"Mode": "OFF"},
        ActionAfterCompletion="DELETE",
        Target={
            "Arn": TERMINATE_INSTANCES_ARN,
            "RoleArn": options.scheduler_role,
            "Input": json.dumps({"InstanceIds": [instance_id]}),
        },
    )
    when = "already scheduled" if answer is None else f"scheduled for {end:%Y-%m-%d %H:%M} UTC"
    print(f"termination of {instance_id} is {when}")


STATUS = "exit-status"
GRACE_SECONDS = 900.0


@command(
    "launch validate",
    "--run check-1 --source s3://my-bucket/rebar.tar.gz --data s3://my-bucket/betons \\\n"
    "      --results s3://my-bucket/runs --max-hours 2 --out report" + ROLES,
    *identity_arguments("validate"),
    *WORK,
    argument("--instance-type", default="g4dn.xlarge", metavar="TYPE", help=f"{', '.join(BY_NAME)}; %(default)s"),
    argument("--data", default="", help=f"{DATA}; or hf:imagenet-1k, with --secret HF_TOKEN=/PARAMETER"),
    argument("--command", dest="line", help="bash command instead of the validation; writes to $RUN_FOLDER"),
    argument("--out", type=Path, required=True, help="folder for the report"),
    *INSTANCE,
)
def _validate(aws: Aws, options: Namespace) -> None:
    """Run the one-hour validation, or another command, on one GPU, and download its report."""
    machine = instance_type(options.instance_type)
    if machine.gpus != 1:
        text = f"{machine.name} has {machine.gpus} GPUs. Use a type with one, such as g5.xlarge."
        raise AwsError(text, code="instance-type-unsuitable")
    from_hub = options.data.startswith("hf:")
    line = options.line
    if line is None:
        if not options.data:
            text = "--data is missing. Use s3://…, snap-… or hf:imagenet-1k, or set --command."
            raise AwsError(text, code="aws-option-invalid")
        images = shlex.quote(options.data) if from_hub else '"$DATA_FOLDER"'
        line = f"exec ./scripts/validation_run.sh {images}"
    if options.data and not from_hub:
        require_disk_space(aws, machine, options.data, options.data_gb, options.root_gb)
    data = "" if from_hub else options.data
    _run(aws, options, render(options, ("bash", "-c", line), data, aws.ec2.meta.region_name))


def _run(aws: Aws, options: Namespace, script: str) -> None:
    """Launch an instance, wait for its exit status in S3, download the report, terminate.

    A repeated call completes an interrupted one. Raises AwsError if the command failed, or if the instance ended
    without an exit status; the folder then has the part of the report that exists.
    """
    s3, identity, results, folder = aws("s3"), identity_of(options), run_prefix(options), options.out
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    check_writable(existing / folder.name)  # before an instance starts
    if _status(s3, results) is None:
        instance_id = launch(aws, options, script)
        if instance_id is None or not aws.executes:
            return
        with raise_terminated():  # so that the instance is terminated
            try:
                _wait(aws, options, s3, results)
            finally:
                _download(s3, results, folder)
                terminate(aws, instance_id)
    else:
        print(f"{identity.run} has already ended: nothing is launched, --yes downloads its report")
        if not aws.executes:
            return
        _download(s3, results, folder)
        for instance in find_instances(aws, identity.key):
            terminate(aws, instance["InstanceId"])
    if (summary := folder / "run" / "summary.txt").is_file():
        print(summary.read_text(errors="replace"), end="")
    status = _status(s3, results)
    if status != "0":
        text = f"{identity.run} failed with exit status {status or 'unknown'}. See {folder / 'machine.log'}."
        raise AwsError(text, code="remote-run-failed")
    print(f"{identity.run} is done: its report is in {folder}")


def _wait(aws: Aws, options: Namespace, s3: Any, results: S3Prefix) -> None:
    """Wait until the exit status exists, or the instance does not."""
    identity, deadline = identity_of(options), time.monotonic() + 3600 * options.max_hours + GRACE_SECONDS
    while _status(s3, results) is None and find_instances(aws, identity.key, ("pending", "running")):
        if time.monotonic() > deadline:
            text = f"{identity.run} is still running after --max-hours. Check the AWS console."
            raise AwsError(text, code="aws-wait-failed")
        time.sleep(commands.POLL_SECONDS)


def _status(s3: Any, results: S3Prefix) -> str | None:
    """Return the exit status of the command; None if it has not ended."""
    missing, key = ["NoSuchKey"], results.key(STATUS)
    answer = call(f"reading {results}/{STATUS}", s3.get_object, none_if=missing, Bucket=results.bucket, Key=key)
    return None if answer is None else str(answer["Body"].read(64).decode()).strip()


def _download(s3: Any, results: S3Prefix, folder: Path) -> None:
    """Download the results, except the checkpoints."""
    action, prefix = f"downloading {results}", results.key("")
    for entry in paginate(action, s3, "list_objects_v2", "Contents", Bucket=results.bucket, Prefix=prefix):
        name = entry["Key"].removeprefix(prefix)
        target = folder / name
        if not name or name.endswith(".pt") or not target.resolve().is_relative_to(folder.resolve()):
            continue
        download(s3, results.bucket, entry["Key"], target, unverified=True)
