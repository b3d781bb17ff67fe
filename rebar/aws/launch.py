"""Launch instances that shut themselves down, and schedule their termination with EventBridge Scheduler."""

import json
import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from rebar.aws.capacity import require_offered, require_quota
from rebar.aws.client import Clients, call
from rebar.aws.cost import EBS_GB_MONTH, HOURS_PER_MONTH
from rebar.aws.instances import PRICE_SOURCE, InstanceType, find_instances
from rebar.aws.plan import Mode, Step, confirm_plan
from rebar.aws.tags import Identity, at_most_one, create_once, expiry, now, tag_specification
from rebar.storage.boto import AwsError

GPU_AMI = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
"""AWS's Deep Learning Base AMI: Ubuntu 22.04 with NVIDIA's open driver."""
TERMINATE_INSTANCES_ARN = "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances"
GRACE = timedelta(minutes=10)
VISIBILITY_DELAY = timedelta(minutes=5)
"""DescribeInstances may not return a new instance for this long (eventual consistency)."""


@dataclass(frozen=True)
class LaunchSpec:
    """An instance to launch; ``options`` are those of the command ``launch``."""

    identity: Identity
    machine: InstanceType
    user_data: str
    options: Namespace

    def request(self, image: str) -> dict[str, Any]:
        """Return the parameters of RunInstances without client token."""
        options, profile = self.options, self.options.instance_profile
        identity = self.identity
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
            "InstanceType": self.machine.name,
            "MinCount": 1,
            "MaxCount": 1,
            "UserData": self.user_data,
            "InstanceInitiatedShutdownBehavior": "terminate",
            "IamInstanceProfile": {"Arn" if profile.startswith("arn:") else "Name": profile},
            "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled", "HttpPutResponseHopLimit": 1},
            "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
            "TagSpecifications": [tag_specification(kind, identity.tags()) for kind in ("instance", "volume")],
            **{key: value for key, value in optional.items() if value is not None},
        }


def launch(clients: Clients, spec: LaunchSpec, mode: Mode) -> str | None:
    """Launch an instance, or find the one that an earlier call launched. Returns its id.

    Returns None if the plan was only printed. An instance whose termination cannot be scheduled is terminated at once.
    """
    identity, machine, options = spec.identity, spec.machine, spec.options
    existing = at_most_one(find_instances(clients, identity.key), "InstanceId", f"instance {identity}")
    if existing is not None:
        instance_id = str(existing["InstanceId"])
        if existing["InstanceType"] != machine.name:
            text = f"{identity.run} already runs on {instance_id}, a {existing['InstanceType']}. Use another --run."
            raise AwsError(text, code="aws-exists-differently")
        print(f"{instance_id} exists already: {machine.name}, {existing['State']['Name']}")
        if mode is Mode.EXECUTE:
            _schedule_or_terminate(clients, options, instance_id)
        return instance_id
    require_offered(clients, machine, options.zone)
    require_quota(clients, machine, spot=options.spot)
    request = spec.request(options.image or _newest_image(clients))
    if not confirm_plan(mode, f"instance {identity}", _steps(clients, spec, request)):
        return None
    launched: dict[str, datetime] = {}

    def create(token: str) -> str:
        answer = call("launching an instance", clients.ec2.run_instances, **request, ClientToken=token)
        instance = answer["Instances"][0]
        launched[instance["InstanceId"]] = instance["LaunchTime"]
        return str(instance["InstanceId"])

    instance_id = create_once(create, lambda created: _is_deleted(clients, created, launched[created]), request)
    print(f"launched {instance_id}", flush=True)
    _schedule_or_terminate(clients, options, instance_id)
    return instance_id


def _newest_image(clients: Clients) -> str:
    action = "looking for AWS's image with an NVIDIA driver (--image sets another)"
    return str(call(action, clients("ssm").get_parameter, Name=GPU_AMI)["Parameter"]["Value"])


def terminate(clients: Clients, instance_id: str) -> None:
    """Terminate an instance."""
    call(f"terminating {instance_id}", clients.ec2.terminate_instances, InstanceIds=[instance_id])
    print(f"terminated {instance_id}", flush=True)


def _steps(clients: Clients, spec: LaunchSpec, request: Mapping[str, Any]) -> list[Step]:
    machine, options = spec.machine, spec.options
    cost = options.max_hours * (machine.price + options.root_gb * EBS_GB_MONTH["gp3"] / HOURS_PER_MONTH)
    price = f"${machine.price:.3f}/h (list price of {PRICE_SOURCE}{'; spot is cheaper' if options.spot else ''})"
    text = f"launch a {machine.name} ({machine.gpus} × {machine.gpu}){' on spot' if options.spot else ''}: {price}"
    return [
        Step(text, clients.ec2.run_instances, request),
        Step(f"it shuts down, and so terminates, when done or after {options.max_hours:g} h: at most ${cost:.2f}"),
        Step(f"EventBridge Scheduler terminates it {GRACE.total_seconds() / 60:.0f} minutes later if it still exists"),
    ]


def _is_deleted(clients: Clients, instance_id: str, launched: datetime) -> bool:
    """Return whether an instance was terminated; EC2 no longer lists it an hour later."""
    missing = ["InvalidInstanceID.NotFound"]
    describe = clients.ec2.describe_instances
    answer = call(f"describing {instance_id}", describe, none_if=missing, InstanceIds=[instance_id])
    if answer is None:
        return now() - launched > VISIBILITY_DELAY
    states = [each["State"]["Name"] for reservation in answer["Reservations"] for each in reservation["Instances"]]
    return states in (["terminated"], ["shutting-down"])


def _schedule_or_terminate(clients: Clients, options: Namespace, instance_id: str) -> None:
    """Schedule the termination of an instance, or terminate it if that fails. An existing schedule is kept."""
    end = now() + timedelta(hours=options.max_hours) + GRACE
    try:
        answer = call(
            f"scheduling the termination of {instance_id}",
            clients("scheduler").create_schedule,
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
    except BaseException:
        print(f"the termination of {instance_id} cannot be scheduled: terminating it now", flush=True)
        terminate(clients, instance_id)
        raise
    when = "already scheduled" if answer is None else f"scheduled for {end:%Y-%m-%d %H:%M} UTC"
    print(f"termination of {instance_id} is {when}")
