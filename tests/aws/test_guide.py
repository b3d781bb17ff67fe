"""docs/aws.md: commands are valid, the table is current, and the policies allow the API calls in the code."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rebar.aws.__main__ import build_parser
from tests.aws.conftest import run_cli
from tests.aws.strict_aws import StrictAws
from tests.conftest import REPOSITORY

GUIDE = (REPOSITORY / "docs/aws.md").read_text()
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", GUIDE, flags=re.DOTALL)).replace("\\\n", " ")
COMMANDS = [words for line in BLOCKS.splitlines() if (words := shlex.split(line, comments=True))]
REBAR_COMMANDS = [words[3:] for words in COMMANDS if words[:3] == ["python", "-m", "rebar.aws"]]
OPERATOR, MACHINE, SCHEDULER, JOB, SECRETS = map(json.loads, re.findall(r"```json\n(.*?)```", GUIDE, flags=re.DOTALL))
PERMISSIONS = {  # API calls whose permission is not ec2:CALL
    "DescribeBudget": "budgets:ViewBudget",
    "CreateBudget": "budgets:ModifyBudget",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "UploadFile": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "DescribeJobDefinitions": "batch:DescribeJobDefinitions",
    "DescribeJobQueues": "batch:DescribeJobQueues",
    "DescribeComputeEnvironments": "batch:DescribeComputeEnvironments",
    "ListJobs": "batch:ListJobs",
    "RegisterJobDefinition": "batch:RegisterJobDefinition",
    "SubmitJob": "batch:SubmitJob",
    "CreateTrainingJob": "sagemaker:CreateTrainingJob",
    "DescribeTrainingJob": "sagemaker:DescribeTrainingJob",
    "ListTags": "sagemaker:ListTags",
    "GetObject": "s3:GetObject",
    "DownloadFile": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "CreateSchedule": "scheduler:CreateSchedule",
    "GetServiceQuota": "servicequotas:GetServiceQuota",
    "GetParameter": "ssm:GetParameter",
    "GetCallerIdentity": "sts:GetCallerIdentity",
}


def allowed_permissions(policy: Any) -> set[str]:
    return {action for statement in policy["Statement"] for action in statement["Action"]}


def required_permissions() -> set[str]:
    """Return the permissions for the API calls in the code."""
    code = "\n".join(path.read_text() for path in (REPOSITORY / "rebar/aws").rglob("*.py"))
    names = set(re.findall(r"\b(?:ec2|s3|budgets|batch|client)\.([a-z]+_[a-z_0-9]+)\b", code))
    names |= set(re.findall(r'"((?:describe|list)_\w+)"', code))
    names |= set(re.findall(r'aws\("[\w-]+"\)\.(\w+)', code))
    names -= {"get_paginator", "get_waiter", "meta"}
    calls = {"".join(part.capitalize() for part in name.split("_")) for name in names}
    return {PERMISSIONS.get(call, f"ec2:{call}") for call in calls}


@pytest.mark.parametrize("words", REBAR_COMMANDS, ids=" ".join)
def test_rebar_commands_are_valid(words: list[str]) -> None:
    if words != ["--help"]:
        build_parser().parse_args(words)


def test_guide_shows_all_command_groups() -> None:
    assert {words[0] for words in REBAR_COMMANDS} >= {
        *("volume", "snapshot", "data", "cost", "budget", "launch", "userdata"),
        *("batch", "sagemaker", "spot", "run"),
    }


def test_machines_table_is_current() -> None:
    assert run_cli("cost", "machines").out.strip() in GUIDE


def test_policies_allow_all_calls() -> None:
    assert required_permissions() - allowed_permissions(OPERATOR) == set()
    assert len(required_permissions()) > 20
    assert allowed_permissions(SCHEDULER) == {"ec2:TerminateInstances"}


def test_policies_are_minimal() -> None:
    for policy in (OPERATOR, MACHINE, SCHEDULER, JOB, SECRETS):
        assert not [action for action in allowed_permissions(policy) if "*" in action]
        for statement in policy["Statement"]:
            changes = [each for each in statement["Action"] if not re.search(r":(?:Describe|Get|List|View)", each)]
            assert not changes or statement["Resource"] != "*", statement
    assert allowed_permissions(MACHINE) - allowed_permissions(OPERATOR) == set()
    assert not allowed_permissions(MACHINE) & {"ec2:RunInstances", "ec2:TerminateInstances", "iam:PassRole"}
    assert {action.partition(":")[0] for action in allowed_permissions(JOB)} == {"s3", "ecr", "logs"}
    assert allowed_permissions(SECRETS) == {"secretsmanager:GetSecretValue"}


def test_skypilot_task_has_known_keys_only() -> None:
    task = yaml.safe_load((REPOSITORY / "scripts/skypilot.yaml").read_text())
    assert task.keys() <= {"name", "resources", "num_nodes", "workdir", "envs", "setup", "run"}
    assert "scripts/train_job.sh" in task["run"]
    assert (REPOSITORY / task["envs"]["CONFIG"]).is_file()


AWS = Path(sys.executable).with_name("aws")
AWS_CLI_COMMANDS = [words for words in COMMANDS if words[0] == "aws" and words[2].startswith("create-")]


@pytest.mark.skipif(not AWS.exists(), reason="AWS's command line is not installed")
@pytest.mark.parametrize("words", AWS_CLI_COMMANDS, ids=lambda words: " ".join(words[:3]))
def test_commands_of_the_aws_cli_are_valid(words: list[str], aws: StrictAws) -> None:
    """``--generate-cli-skeleton output`` checks the parameters without sending anything."""
    done = subprocess.run(
        [sys.executable, AWS, *words[1:], "--generate-cli-skeleton", "output"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert aws.requests == []
