"""Every command has a help text with a valid example."""

import shlex
import subprocess
import sys

import pytest

from rebar.aws.__main__ import build_parser
from rebar.aws.commands import COMMANDS
from tests.aws.conftest import run_cli
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_ends_with_a_valid_example(name: str) -> None:
    output = run_cli(*name.split(), "--help").out
    _, heading, example = output.partition("example:\n  python -m rebar.aws")
    assert heading
    words = shlex.split(example.replace("\\\n", " "))
    assert words[:2] == name.split()
    build_parser().parse_args(words)


def test_command_without_boto3_fails_with_its_code() -> None:
    code = "import sys; sys.modules['boto3'] = sys.modules['botocore'] = None\n"
    code += "from rebar.cli import run_command; from rebar.aws.__main__ import main\n"
    code += "run_command(main, ['snapshot', 'list'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert "[aws-boto3-missing]" in done.stderr
