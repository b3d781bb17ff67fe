"""A monthly budget, which writes an e-mail before the bill does.

What is running, what lies about, what has expired, and what a day of it costs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rebar.aws.client import AwsError, Clients, code_of, translate_aws_error
from rebar.aws.cost import EBS_GB_MONTH, HOURS_A_MONTH, SNAPSHOT_GB_MONTH
from rebar.aws.instances import BY_NAME
from rebar.aws.plan import Call, Mode, Step, confirm_plan
from rebar.aws.snapshots import delete_volume, find_snapshots, require_deletable
from rebar.aws.tags import EXPIRES, PROJECT, ROLE, RUN, as_time, filters, now, tags_of
from rebar.aws.volumes import PAGE, find_volumes

THRESHOLDS = (("ACTUAL", 50.0), ("ACTUAL", 80.0), ("ACTUAL", 100.0), ("FORECASTED", 100.0))
"""Per cent of the limit, of what was spent or is forecast."""


def create_budget(
    clients: Clients, project: str, limit: int, email: str, mode: Mode, *, only_project: bool = False
) -> None:
    """Create the project's monthly budget in US dollars, or find it; raises AwsError where its limit is another.

    ``only_project`` counts what carries the project's tag, which must be activated as a cost allocation tag.
    """
    with translate_aws_error("asking AWS which account this is"):
        account = clients("sts").get_caller_identity()["Account"]
    budgets, name = clients("budgets"), f"rebar-{project}"
    existing = _find(budgets, account, name)
    if existing is not None:
        amount = float(existing["BudgetLimit"]["Amount"])
        if amount != limit:
            raise AwsError(
                f"the budget {name} exists with ${amount:.0f} a month, not ${limit}: change it in the console"
            )
        print(f"the budget {name} exists already: ${amount:.0f} a month")
        return
    budget: dict[str, Any] = {
        "BudgetName": name,
        "BudgetLimit": {"Amount": str(limit), "Unit": "USD"},
        "TimeUnit": "MONTHLY",
        "BudgetType": "COST",
    }
    if only_project:
        budget["CostFilters"] = {"TagKeyValue": [f"user:{PROJECT}${project}"]}
    notifications = [
        {
            "Notification": {
                "NotificationType": kind,
                "ComparisonOperator": "GREATER_THAN",
                "Threshold": threshold,
                "ThresholdType": "PERCENTAGE",
            },
            "Subscribers": [{"SubscriptionType": "EMAIL", "Address": email}],
        }
        for kind, threshold in THRESHOLDS
    ]
    request = {"AccountId": account, "Budget": budget, "NotificationsWithSubscribers": notifications}
    scope = f"what is tagged {PROJECT}={project}" if only_project else "the whole account"
    marks = ", ".join(f"{threshold:.0f} % {kind.lower()}" for kind, threshold in THRESHOLDS)
    text = f"create the budget {name}: ${limit} a month for {scope}, e-mail to {email} at {marks}"
    if confirm_plan(mode, "budget", [Step(text)]):
        Call(budgets, "create_budget", request).send("creating the budget")
        print(f"created the budget {name}; it only warns: nothing is switched off")


def _find(budgets: Any, account: str, name: str) -> dict[str, Any] | None:
    from botocore.exceptions import ClientError

    with translate_aws_error(f"looking for the budget {name}"):
        try:
            found: dict[str, Any] = budgets.describe_budget(AccountId=account, BudgetName=name)["Budget"]
            return found
        except ClientError as error:
            if code_of(error) == "NotFoundException":
                return None
            raise


LIVING = ("pending", "running", "stopping", "stopped")


@dataclass(frozen=True)
class Found:
    """One thing that costs money; ``dollars_a_day`` None: unknown."""

    kind: str
    name: str
    what_for: str
    state: str
    details: str
    dollars_a_day: float | None
    expires: datetime | None
    raw: Mapping[str, Any]

    @property
    def expired(self) -> bool:
        """Whether its day has passed."""
        return self.expires is not None and self.expires < now()


def find_instances(clients: Clients, tags: Mapping[str, str], states: tuple[str, ...] = LIVING) -> list[dict[str, Any]]:
    """All machines that carry these tags and are in one of the states."""
    chosen = [*filters(tags), {"Name": "instance-state-name", "Values": list(states)}]
    with translate_aws_error("looking for machines"):
        pages = clients.ec2.get_paginator("describe_instances").paginate(
            Filters=chosen, PaginationConfig={"PageSize": PAGE}
        )
        return [
            instance for page in pages for reservation in page["Reservations"] for instance in reservation["Instances"]
        ]


def find_all(clients: Clients, project: str) -> list[Found]:
    """Machines, volumes and snapshots of a project, in one region."""
    tags = {PROJECT: project}
    found = [_instance(each) for each in find_instances(clients, tags)]
    found += [_volume(each) for each in find_volumes(clients, tags)]
    return found + [_snapshot(each) for each in find_snapshots(clients, tags)]


def _instance(each: Mapping[str, Any]) -> Found:
    kind, state = each["InstanceType"], each["State"]["Name"]
    price = BY_NAME[kind].price if kind in BY_NAME else None
    spot = each.get("InstanceLifecycle") == "spot"
    a_day = 0.0 if state == "stopped" else None if price is None else 24 * price
    details = (
        f"{kind}{' spot (shown at the price on demand)' if spot else ''} since {each['LaunchTime']:%Y-%m-%d %H:%M}"
    )
    return _found("machine", each["InstanceId"], state, details, a_day, each)


def _volume(each: Mapping[str, Any]) -> Found:
    price, state = EBS_GB_MONTH.get(each["VolumeType"]), each["State"]
    a_day = None if price is None else 24 / HOURS_A_MONTH * price * each["Size"]
    return _found(
        "volume",
        each["VolumeId"],
        "detached" if state == "available" else state,
        f"{each['Size']} GiB {each['VolumeType']}",
        a_day,
        each,
    )


def _snapshot(each: Mapping[str, Any]) -> Found:
    a_day = 24 / HOURS_A_MONTH * SNAPSHOT_GB_MONTH * each["VolumeSize"]
    return _found("snapshot", each["SnapshotId"], each["State"], f"at most {each['VolumeSize']} GiB", a_day, each)


def _found(kind: str, name: str, state: str, details: str, a_day: float | None, raw: Mapping[str, Any]) -> Found:
    tags = tags_of(raw)
    expires = as_time(tags[EXPIRES]) if EXPIRES in tags else None
    return Found(kind, name, f"{tags.get(RUN, '?')}/{tags.get(ROLE, '?')}", state, details, a_day, expires, raw)


def report(found: list[Found]) -> str:
    """A line each, and the sum."""
    lines = []
    for each in found:
        cost = "price unknown" if each.dollars_a_day is None else f"${each.dollars_a_day:.2f} a day"
        mark = "EXPIRED" if each.expired else f"until {each.expires:%Y-%m-%d}" if each.expires else "no expiry"
        lines.append(
            f"{each.kind:<9} {each.name:<22} {each.what_for:<24} {each.state:<10} {cost:<15} {mark:<16} {each.details}"
        )
    total = sum(each.dollars_a_day or 0 for each in found)
    unknown = sum(each.dollars_a_day is None for each in found)
    more = f", {unknown} of unknown price on top" if unknown else ""
    lines.append(f"{len(found)} things, about ${total:.2f} a day (list prices, us-east-1){more}")
    return "\n".join(lines)


def end_expired(clients: Clients, found: list[Found], mode: Mode) -> None:
    """Terminate expired machines, delete expired volumes that a verified snapshot holds; snapshots stay."""
    expired = [each for each in found if each.expired]
    machines = [each for each in expired if each.kind == "machine"]
    volumes, kept = [], []
    for each in expired:
        if each.kind == "volume":
            try:
                require_deletable(clients, each.raw)
                volumes.append(each)
            except AwsError as error:
                kept.append(str(error))
    for reason in kept:
        print(f"kept: {reason}")
    if not machines and not volumes:
        print("nothing that has expired can be ended")
        return
    calls = [Call(clients.ec2, "terminate_instances", {"InstanceIds": [machine.name]}) for machine in machines]
    steps = [Step(f"terminate {machine.name}", call) for machine, call in zip(machines, calls, strict=True)]
    steps += [
        Step(f"delete {volume.name}", Call(clients.ec2, "delete_volume", {"VolumeId": volume.name}))
        for volume in volumes
    ]
    if not confirm_plan(mode, "what has expired", steps):
        return
    for machine, call in zip(machines, calls, strict=True):
        call.send(f"terminating {machine.name}")
        print(f"terminated {machine.name}")
    for volume in volumes:
        delete_volume(clients, volume.raw, mode)
