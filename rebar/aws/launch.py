"""``launch single|multi``: launch instances that shut themselves down, and schedule their termination."""

import json
import math
from argparse import Namespace
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from rebar.aws.arguments import argument, command, identity_of, positive
from rebar.aws.client import Aws, Step, call
from rebar.aws.instances import (
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
from rebar.aws.tags import Identity, at_most_one, create_once, expiry, now, tag_specification
from rebar.aws.user_data import EXAMPLE, TRAINING, render, training_command
from rebar.storage.boto import AwsError

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


@command("launch single", EXAMPLE + ROLES, *TRAINING, *INSTANCE)
def _single(aws: Aws, options: Namespace) -> None:
    """Train on an instance with one GPU."""
    _train(aws, options, single=True)


@command("launch multi", EXAMPLE.replace("g5.xlarge", "g5.12xlarge") + ROLES, *TRAINING, *INSTANCE)
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
