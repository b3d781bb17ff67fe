"""Plans: a command prints its steps. ``--check`` asks AWS for permission (DryRun), ``--yes`` executes them."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rebar.aws.client import call
from rebar.storage.boto import AwsError


class Mode(Enum):
    """How to handle a plan: print it, ask AWS for permission (DryRun), or execute it."""

    PRINT = "print"
    CHECK = "check"
    EXECUTE = "execute"


@dataclass(frozen=True)
class Step:
    """One line of a plan; ``method``: the EC2 client's method that ``--check`` calls with ``DryRun``."""

    text: str
    method: Callable[..., Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def is_allowed(self) -> bool | None:
        """Return True if EC2 permits the call, None if it has no dry run. Raises AwsError if EC2 refuses."""
        if self.method is None:
            return None
        return call(self.text, self.method, none_if=["DryRunOperation"], **self.parameters, DryRun=True) is None


def confirm_plan(mode: Mode, title: str, steps: Sequence[Step]) -> bool:
    """Print the plan, and return whether to execute it. Raises AwsError if ``--check`` finds a refused step."""
    print(f"plan: {title}")
    for number, step in enumerate(steps, 1):
        print(f"  {number}. {step.text}")
    if mode is Mode.CHECK:
        _check(title, steps)
    elif mode is Mode.PRINT:
        print("nothing was changed; --check asks AWS for permission, --yes executes the plan")
    sys.stdout.flush()
    return mode is Mode.EXECUTE


def _check(title: str, steps: Sequence[Step]) -> None:
    refusals = []
    for number, step in enumerate(steps, 1):
        try:
            print(f"  {number}: {'not checked: AWS has no dry run for it' if step.is_allowed() is None else 'allowed'}")
        except AwsError as error:
            print(f"  {number}: REFUSED")
            refusals.append(str(error))
    if refusals:
        raise AwsError(f"{title}: AWS would refuse: {'; '.join(refusals)}", code="aws-plan-refused")
    print("nothing was changed; --yes executes the plan")


def add_mode(parser: argparse.ArgumentParser) -> None:
    """Add ``--yes`` and ``--check``."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--yes", action="store_true", help="execute the plan; without it the plan is only printed")
    group.add_argument("--check", action="store_true", help="ask AWS whether the plan is allowed (DryRun)")


def mode_of(options: argparse.Namespace) -> Mode:
    """Return the mode chosen on the command line."""
    return Mode.EXECUTE if options.yes else Mode.CHECK if options.check else Mode.PRINT
