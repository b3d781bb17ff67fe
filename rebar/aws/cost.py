"""``cost estimate|machines|sweep`` and ``budget create``: estimates, the daily cost of all resources, and a budget."""

import argparse
import re
from argparse import Namespace
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rebar.aws.commands import Aws, Step, argument, call, command, one_of, positive, table
from rebar.aws.instances import (
    CPU_TYPES,
    EBS_GB_MONTH,
    HOURS_PER_MONTH,
    INSTANCE_TYPE,
    PRICE_SOURCE,
    PRICES,
    SNAPSHOT_GB_MONTH,
    TYPES,
    InstanceType,
    find_instances,
    instance_type,
    spot_price,
)
from rebar.aws.snapshots import delete_volume, find_snapshots, require_deletable
from rebar.aws.tags import PROJECT, ROLE, RUN, Resource, expiry_of, now, tags_of
from rebar.aws.volumes import find_volumes
from rebar.cli import count
from rebar.storage.aws import AwsError

TRAIN_IMAGES = 1_281_167
MINUTES_ON_8_A100 = {16: 14.9, 24: 21.7, 32: 28.8, 40: 35.6, 56: 49.4, 88: 77.2}
"""By epochs: ffcv-imagenet's own runs on MEASURED_ON with validation (its assets/agg.csv)."""
MEASURED_ON = "p4d.24xlarge"
SPEED_IN_A100 = {
    ("T4", 16): 320 / 1555,
    ("A10G", 24): 600 / 1555,
    ("L4", 24): 300 / 1555,
    ("L40S", 48): 864 / 1555,
    ("V100", 16): 0.49,
    ("A100", 40): 1.0,
    ("A100", 80): 2039 / 1555,
    ("H100", 80): 3350 / 1555,
    ("H200", 141): 4800 / 1555,
}
"""By GPU and its memory in GB: the ratio of memory bandwidths (data sheets); the V100 as measured by NVIDIA. See
docs/recipes.md."""
SETUP_HOURS = 0.25
EPOCHS = argument("--epochs", type=positive, default=16, help="default: %(default)s")


@dataclass(frozen=True)
class Estimate:
    """Hours of training, and the basis of that number."""

    hours: float
    basis: str


def estimate(machine: InstanceType, epochs: int, images_per_second: float | None = None) -> Estimate:
    """Return the training time from a measured throughput, or scaled from ffcv-imagenet's published times.

    Without a published time for that number of epochs, the time per epoch is that of the nearest number.
    """
    if images_per_second:
        hours = epochs * TRAIN_IMAGES / images_per_second / 3600
        return Estimate(hours, f"from your {images_per_second:.0f} images/s, without validation")
    published = min(MINUTES_ON_8_A100, key=lambda known: abs(known - epochs))
    minutes = MINUTES_ON_8_A100[published] * epochs / published
    hours = minutes / 60 * 8 / (machine.gpus * SPEED_IN_A100[machine.gpu, machine.gpu_memory_gib])
    if published != epochs:
        basis = f"scaled by epochs and GPU speed from ffcv-imagenet's time for {published} epochs on 8 A100"
        return Estimate(hours, f"{basis}; not measured, may be 20 % longer")
    if machine.name == MEASURED_ON:
        return Estimate(hours, "measured by ffcv-imagenet with its own script on this machine, not with Rebar")
    return Estimate(hours, "scaled by GPU speed from ffcv-imagenet's time on 8 A100; not measured, may be 20 % longer")


@command(
    "cost estimate",
    "--instance-type g5.12xlarge --epochs 16",
    INSTANCE_TYPE,
    EPOCHS,
    argument("--images-per-second", type=float, help="measured training throughput, as in the log"),
    one_of(
        argument("--spot", action="store_true", help="use the lowest current spot price in the region"),
        argument("--price", type=float, help="$/h, such as your region's"),
    ),
    changes=False,
)
def _estimate(aws: Aws, options: Namespace) -> None:
    """Estimate the hours and cost of a training run. Prints the source of each number."""
    machine = instance_type(options.instance_type)
    price, basis = machine.price, f"list price of {PRICE_SOURCE}"
    if options.spot:
        offer = spot_price(aws, machine)
        price, basis = offer.dollars, f"current spot price in {offer.zone}"
    elif options.price:
        price, basis = options.price, "from --price"
    training = estimate(machine, options.epochs, options.images_per_second)
    hours = training.hours + SETUP_HOURS
    rows = [
        ("machine", f"{machine.name}: {machine.gpus} × {machine.gpu}, {machine.vcpus} vCPUs, {machine.memory_gib} GiB"),
        ("recipe", f"ResNet-50, {options.epochs} epochs, rn50_configs/{machine.config}"),
        ("training", f"{training.hours:.2f} h: {training.basis}"),
        ("setup", f"{SETUP_HOURS:.2f} h: assumed (boot, installation, copying the data)"),
        ("price", f"${price:.4f}/h: {basis}"),
        ("cost", f"${hours * price:.2f} for {hours:.2f} h, plus disks and S3"),
    ]
    print(table(rows))


@command("cost machines", "--epochs 88", EPOCHS, changes=False)
def _machines(aws: Aws, options: Namespace) -> None:
    """Print the supported instance types as a table, with the time and cost of one recipe."""
    heads = ["machine", "GPUs", "GPU memory", "vCPUs", "memory", "NVMe", "$/h"]
    rows = [[*heads, f"{options.epochs} epochs", "cost with setup"], ["---"] * 9]
    for each in TYPES:
        hours = estimate(each, options.epochs).hours
        nvme = f"{each.nvme_disks} × {each.nvme_gb // each.nvme_disks} GB" if each.nvme_disks else "none"
        row = [each.name, f"{each.gpus} × {each.gpu}", f"{each.gpu_memory_gib} GB", str(each.vcpus)]
        row += [f"{each.memory_gib} GiB", nvme, f"{each.price:.2f}", f"{hours:.2f} h"]
        rows.append([*row, f"${(hours + SETUP_HOURS) * each.price:.2f}"])
    for cpu in CPU_TYPES:
        shape = [str(cpu.vcpus), f"{cpu.memory_gib} GiB", "none", f"{cpu.price:.2f}"]
        rows.append([cpu.name, "none", "", *shape, "writes data", ""])
    for row in rows:  # in Markdown, for docs/aws.md
        print(f"| {' | '.join(row)} |")


# ------------------------------------------------------------------------------------------ sweep


@dataclass(frozen=True)
class Expense:
    """A resource that costs money; ``dollars`` a day, None: unknown."""

    kind: str
    name: str
    state: str
    details: str
    dollars: float | None
    resource: Resource

    @property
    def expires(self) -> datetime | None:
        """Expiry time; None if it does not expire."""
        return expiry_of(tags_of(self.resource))

    @property
    def has_expired(self) -> bool:
        """Whether the expiry time has passed."""
        return self.expires is not None and self.expires < now()

    def row(self) -> list[str]:
        """Return its row of the table."""
        tags = tags_of(self.resource)
        cost = "price unknown" if self.dollars is None else f"${self.dollars:.2f}/day"
        expires = "EXPIRED" if self.has_expired else f"until {self.expires:%Y-%m-%d}" if self.expires else "no expiry"
        name = f"{tags.get(RUN, '?')}/{tags.get(ROLE, '?')}"
        return [self.kind, self.name, name, self.state, cost, expires, self.details]


def _instance(found: Resource) -> Expense:
    kind, state = found["InstanceType"], found["State"]["Name"]
    price = 0.0 if state == "stopped" else PRICES.get(kind)
    spot = " spot (at the on-demand price)" if found.get("InstanceLifecycle") == "spot" else ""
    details = f"{kind}{spot} since {found['LaunchTime']:%Y-%m-%d %H:%M}"
    return Expense("instance", found["InstanceId"], state, details, None if price is None else 24 * price, found)


def _volume(found: Resource) -> Expense:
    kind, size = found["VolumeType"], found["Size"]
    state = "detached" if found["State"] == "available" else found["State"]
    dollars = 24 / HOURS_PER_MONTH * EBS_GB_MONTH[kind] * size if kind in EBS_GB_MONTH else None
    return Expense("volume", found["VolumeId"], state, f"{size} GiB {kind}", dollars, found)


def _snapshot(found: Resource) -> Expense:
    size, state = found["VolumeSize"], found["State"]
    dollars = 24 / HOURS_PER_MONTH * SNAPSHOT_GB_MONTH * size
    return Expense("snapshot", found["SnapshotId"], state, f"at most {size} GiB", dollars, found)


@command(
    "cost sweep",
    "--end-expired --yes",
    argument(
        "--end-expired",
        action="store_true",
        help="terminate expired instances; delete expired volumes whose content is in a verified snapshot",
    ),
)
def _sweep(aws: Aws, options: Namespace) -> None:
    """List the resources in this region, their expiry and their daily cost. Snapshots are never deleted."""
    tags = {PROJECT: aws.project}
    found = [
        *map(_instance, find_instances(aws, tags)),
        *map(_volume, find_volumes(aws, tags)),
        *map(_snapshot, find_snapshots(aws, tags)),
    ]
    unknown = sum(each.dollars is None for each in found)
    more = f", plus {unknown} of unknown price" if unknown else ""
    total = sum(each.dollars or 0 for each in found)
    if found:
        print(table([each.row() for each in found]))
    print(f"{count(len(found), 'resource')}, about ${total:.2f}/day (list prices, us-east-1){more}")
    if options.end_expired:
        _end_expired(aws, [each for each in found if each.has_expired])


def _end_expired(aws: Aws, expired: list[Expense]) -> None:
    """Terminate expired instances, and delete expired volumes whose content is in a verified snapshot."""
    terminate, delete = aws.ec2.terminate_instances, aws.ec2.delete_volume
    instances, volumes = {}, {}
    for each in expired:
        if each.kind == "instance":
            instances[each.name] = Step(f"terminate {each.name}", terminate, {"InstanceIds": [each.name]})
        elif each.kind == "volume":
            try:
                require_deletable(aws, each.resource)
                volumes[each.name] = each.resource
            except AwsError as error:
                print(f"kept: {error}")
    steps = [*instances.values(), *(Step(f"delete {name}", delete, {"VolumeId": name}) for name in volumes)]
    if not steps:
        print("no expired resource can be ended")
    elif aws.confirm("expired resources", steps):
        for name, step in instances.items():
            step.execute()
            print(f"terminated {name}")
        for volume in volumes.values():
            delete_volume(aws, volume)


THRESHOLDS = (("ACTUAL", 50.0), ("ACTUAL", 80.0), ("ACTUAL", 100.0), ("FORECASTED", 100.0))
"""Percent of the limit, of actual or forecast spending."""


def _email(text: str) -> str:
    if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an e-mail address")
    return text


@command(
    "budget create",
    "--limit 100 --email me@example.com --yes",
    argument("--limit", required=True, type=positive, help="US dollars a month"),
    argument("--email", required=True, type=_email, help="recipient"),
    argument(
        "--only-project",
        action="store_true",
        help="count resources with the project's tag, not the account; activate the tag as a cost allocation tag",
    ),
)
def _create_budget(aws: Aws, options: Namespace) -> None:
    """Create a monthly budget that sends e-mail at 50, 80 and 100 percent."""
    account = call("getting the account id", aws("sts").get_caller_identity)["Account"]
    budgets, name, limit = aws("budgets"), f"rebar-{aws.project}", options.limit
    action, missing = f"describing the budget {name}", ["NotFoundException"]
    existing = call(action, budgets.describe_budget, none_if=missing, AccountId=account, BudgetName=name)
    if existing is not None:
        amount = float(existing["Budget"]["BudgetLimit"]["Amount"])
        if amount != limit:
            text = f"budget {name} exists with ${amount:.0f} a month, not ${limit}. Change it in the AWS console."
            raise AwsError(text, code="aws-exists-differently")
        print(f"budget {name} exists already: ${amount:.0f} a month")
        return
    budget: dict[str, Any] = {
        "BudgetName": name,
        "BudgetLimit": {"Amount": str(limit), "Unit": "USD"},
        "TimeUnit": "MONTHLY",
        "BudgetType": "COST",
    }
    if options.only_project:
        budget["CostFilters"] = {"TagKeyValue": [f"user:{PROJECT}${aws.project}"]}
    common: dict[str, Any] = {"ComparisonOperator": "GREATER_THAN", "ThresholdType": "PERCENTAGE"}
    subscribers = [{"SubscriptionType": "EMAIL", "Address": options.email}]
    notifications: list[dict[str, Any]] = [
        {"Notification": {**common, "NotificationType": kind, "Threshold": threshold}, "Subscribers": subscribers}
        for kind, threshold in THRESHOLDS
    ]
    scope = f"resources tagged {PROJECT}={aws.project}" if options.only_project else "the account"
    marks = ", ".join(f"{threshold:.0f} % {kind.lower()}" for kind, threshold in THRESHOLDS)
    text = f"create the budget {name}: ${limit} a month for {scope}, e-mail to {options.email} at {marks}"
    if aws.confirm("budget", [Step(text)]):
        request = {"AccountId": account, "Budget": budget, "NotificationsWithSubscribers": notifications}
        call("creating the budget", budgets.create_budget, **request)
        print(f"created the budget {name}; it sends e-mail, but does not stop anything")
