"""A monthly budget, which writes an e-mail before the bill does."""

from typing import Any

from rebar.cloud.clients import Clients
from rebar.cloud.errors import CloudError, code_of, told_clearly
from rebar.cloud.plan import Call, Mode, Step, agreed
from rebar.cloud.tags import PROJECT

THRESHOLDS = (("ACTUAL", 50.0), ("ACTUAL", 80.0), ("ACTUAL", 100.0), ("FORECASTED", 100.0))
"""Per cent of the limit, of what was spent or is forecast."""


def create_budget(
    clients: Clients, project: str, limit: int, email: str, mode: Mode, *, only_project: bool = False
) -> None:
    """Create the project's monthly budget in US dollars, or find it; raises CloudError where its limit is another.

    ``only_project`` counts what carries the project's tag, which must be activated as a cost allocation tag.
    """
    with told_clearly("asking AWS which account this is"):
        account = clients("sts").get_caller_identity()["Account"]
    budgets, name = clients("budgets"), f"rebar-{project}"
    existing = _find(budgets, account, name)
    if existing is not None:
        amount = float(existing["BudgetLimit"]["Amount"])
        if amount != limit:
            raise CloudError(
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
    if agreed(mode, "budget", [Step(text)]):
        Call(budgets, "create_budget", request).send("creating the budget")
        print(f"created the budget {name}; it only warns: nothing is switched off")


def _find(budgets: Any, account: str, name: str) -> dict[str, Any] | None:
    from botocore.exceptions import ClientError

    with told_clearly(f"looking for the budget {name}"):
        try:
            found: dict[str, Any] = budgets.describe_budget(AccountId=account, BudgetName=name)["Budget"]
            return found
        except ClientError as error:
            if code_of(error) == "NotFoundException":
                return None
            raise
