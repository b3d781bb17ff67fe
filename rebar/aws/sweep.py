"""List the resources of a project and their daily cost, end expired ones, and create a monthly budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rebar.aws.client import Clients, call
from rebar.aws.cost import EBS_GB_MONTH, HOURS_PER_MONTH, SNAPSHOT_GB_MONTH
from rebar.aws.instances import BY_NAME, find_instances
from rebar.aws.plan import Mode, Step, confirm_plan
from rebar.aws.snapshots import delete_volume, find_snapshots, require_deletable
from rebar.aws.tags import PROJECT, ROLE, RUN, expiry_of, now, tags_of
from rebar.aws.volumes import find_volumes
from rebar.storage.boto import AwsError


@dataclass(frozen=True)
class Resource:
    """A resource that costs money; ``dollars_per_day`` None: unknown."""

    kind: str
    name: str
    state: str
    details: str
    dollars_per_day: float | None
    raw: Mapping[str, Any]

    @property
    def expires(self) -> datetime | None:
        """Expiry time; None if it does not expire."""
        return expiry_of(tags_of(self.raw))

    @property
    def expired(self) -> bool:
        """Whether the expiry time has passed."""
        return self.expires is not None and self.expires < now()

    def __str__(self) -> str:
        tags = tags_of(self.raw)
        cost = "price unknown" if self.dollars_per_day is None else f"${self.dollars_per_day:.2f}/day"
        mark = "EXPIRED" if self.expired else f"until {self.expires:%Y-%m-%d}" if self.expires else "no expiry"
        name = f"{self.kind:<9} {self.name:<22} {tags.get(RUN, '?') + '/' + tags.get(ROLE, '?'):<24}"
        return f"{name} {self.state:<10} {cost:<15} {mark:<16} {self.details}"


def find_all(clients: Clients, project: str) -> list[Resource]:
    """Return the instances, volumes and snapshots of a project in one region."""
    tags, day = {PROJECT: project}, 24 / HOURS_PER_MONTH
    found = []
    each: Mapping[str, Any]
    for each in find_instances(clients, tags):
        kind, state = each["InstanceType"], each["State"]["Name"]
        price = 0.0 if state == "stopped" else BY_NAME[kind].price if kind in BY_NAME else None
        spot = " spot (at the on-demand price)" if each.get("InstanceLifecycle") == "spot" else ""
        details = f"{kind}{spot} since {each['LaunchTime']:%Y-%m-%d %H:%M}"
        cost = None if price is None else 24 * price
        found.append(Resource("instance", each["InstanceId"], state, details, cost, each))
    for each in find_volumes(clients, tags):
        price = EBS_GB_MONTH.get(each["VolumeType"])
        state = "detached" if each["State"] == "available" else each["State"]
        cost = None if price is None else day * price * each["Size"]
        details = f"{each['Size']} GiB {each['VolumeType']}"
        found.append(Resource("volume", each["VolumeId"], state, details, cost, each))
    for each in find_snapshots(clients, tags):
        size = each["VolumeSize"]
        cost = day * SNAPSHOT_GB_MONTH * size
        found.append(Resource("snapshot", each["SnapshotId"], each["State"], f"at most {size} GiB", cost, each))
    return found


def report(found: list[Resource]) -> str:
    """Return one line per resource, and the total."""
    total = sum(each.dollars_per_day or 0 for each in found)
    unknown = sum(each.dollars_per_day is None for each in found)
    more = f", plus {unknown} of unknown price" if unknown else ""
    last = f"{len(found)} resources, about ${total:.2f}/day (list prices, us-east-1){more}"
    return "\n".join([*map(str, found), last])


def end_expired(clients: Clients, found: list[Resource], mode: Mode) -> None:
    """Terminate expired instances, and delete expired volumes whose content is in a verified snapshot."""
    ec2, instances, volumes = clients.ec2, [], []
    for each in found:
        if each.kind == "instance" and each.expired:
            instances.append(each.name)
        elif each.kind == "volume" and each.expired:
            try:
                require_deletable(clients, each.raw)
                volumes.append(each)
            except AwsError as error:
                print(f"kept: {error}")
    if not instances and not volumes:
        print("no expired resource can be ended")
        return
    steps = [Step(f"terminate {name}", ec2.terminate_instances, {"InstanceIds": [name]}) for name in instances]
    steps += [Step(f"delete {each.name}", ec2.delete_volume, {"VolumeId": each.name}) for each in volumes]
    if confirm_plan(mode, "expired resources", steps):
        for name in instances:
            call(f"terminating {name}", ec2.terminate_instances, InstanceIds=[name])
            print(f"terminated {name}")
        for each in volumes:
            delete_volume(clients, each.raw, mode)


THRESHOLDS = (("ACTUAL", 50.0), ("ACTUAL", 80.0), ("ACTUAL", 100.0), ("FORECASTED", 100.0))
"""Percent of the limit, of actual or forecast spending."""


def create_budget(
    clients: Clients, project: str, limit: int, email: str, mode: Mode, *, only_project: bool = False
) -> None:
    """Create the project's monthly budget in US dollars, or find it. Raises AwsError if its limit differs.

    ``only_project`` counts resources with the project's tag, which must be activated as a cost allocation tag.
    """
    account = call("getting the account id", clients("sts").get_caller_identity)["Account"]
    budgets, name = clients("budgets"), f"rebar-{project}"
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
    if only_project:
        budget["CostFilters"] = {"TagKeyValue": [f"user:{PROJECT}${project}"]}
    common: dict[str, Any] = {"ComparisonOperator": "GREATER_THAN", "ThresholdType": "PERCENTAGE"}
    subscribers = [{"SubscriptionType": "EMAIL", "Address": email}]
    notifications: list[dict[str, Any]] = [
        {"Notification": {**common, "NotificationType": kind, "Threshold": threshold}, "Subscribers": subscribers}
        for kind, threshold in THRESHOLDS
    ]
    scope = f"resources tagged {PROJECT}={project}" if only_project else "the account"
    marks = ", ".join(f"{threshold:.0f} % {kind.lower()}" for kind, threshold in THRESHOLDS)
    text = f"create the budget {name}: ${limit} a month for {scope}, e-mail to {email} at {marks}"
    if confirm_plan(mode, "budget", [Step(text)]):
        request = {"AccountId": account, "Budget": budget, "NotificationsWithSubscribers": notifications}
        call("creating the budget", budgets.create_budget, **request)
        print(f"created the budget {name}; it sends e-mail, but does not stop anything")
