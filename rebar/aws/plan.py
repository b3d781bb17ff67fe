"""Nothing changes unasked: a plan is printed; ``--check`` asks AWS whether it may be done; ``--yes`` does it."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rebar.aws.client import AwsError, code_of, translate_aws_error


class Mode(Enum):
    """What to do with a plan."""

    SHOW = "show"
    CHECK = "check"
    DO = "do"


@dataclass(frozen=True)
class Call:
    """One call of AWS's API that changes something."""

    client: Any
    method: str
    parameters: Mapping[str, Any]

    def send(self, doing: str) -> dict[str, Any]:
        """Do it; raises AwsError."""
        with translate_aws_error(doing):
            answer: dict[str, Any] = getattr(self.client, self.method)(**self.parameters)
            return answer

    def ask(self, doing: str) -> None:
        """Ask whether it would be allowed (EC2's DryRun); raises AwsError where it would not."""
        from botocore.exceptions import ClientError

        with translate_aws_error(doing):
            try:
                getattr(self.client, self.method)(**{**self.parameters, "DryRun": True})
            except ClientError as error:
                if code_of(error) != "DryRunOperation":
                    raise


@dataclass(frozen=True)
class Step:
    """One line of a plan, and the call that ``--check`` can ask about."""

    text: str
    call: Call | None = None


def confirm_plan(mode: Mode, title: str, steps: Sequence[Step]) -> bool:
    """Print the plan; True where it is to be done now.

    Raises AwsError where AWS, asked, would refuse a step.
    """
    print(f"plan: {title}")
    for number, step in enumerate(steps, 1):
        print(f"  {number}. {step.text}")
    if mode is Mode.CHECK:
        _ask(title, steps)
    elif mode is Mode.SHOW:
        print("nothing was changed; --check asks AWS whether it may be done, --yes does it")
    sys.stdout.flush()
    return mode is Mode.DO


def _ask(title: str, steps: Sequence[Step]) -> None:
    run_failing = []
    for number, step in enumerate(steps, 1):
        if step.call is None:
            print(f"  {number}: not asked: AWS has no dry run for it")
            continue
        try:
            step.call.ask(step.text)
            print(f"  {number}: allowed")
        except AwsError as error:
            print(f"  {number}: REFUSED")
            run_failing.append(str(error))
    if run_failing:
        raise AwsError(f"{title}: AWS would refuse: " + "; ".join(run_failing))
    print("nothing was changed; --yes does it")


def add_mode(parser: argparse.ArgumentParser) -> None:
    """The options every command that changes something has."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--yes", action="store_true", help="do it; without this only the plan is printed")
    group.add_argument("--check", action="store_true", help="ask AWS whether it would be allowed (DryRun)")


def mode_of(options: argparse.Namespace) -> Mode:
    """The mode chosen on the command line."""
    return Mode.DO if options.yes else Mode.CHECK if options.check else Mode.SHOW
