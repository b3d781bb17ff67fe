"""Every command has a help text with a valid example."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rebar.aws import arguments
from rebar.aws.__main__ import build_parser
from tests.aws.conftest import run_cli
from tests.conftest import REPOSITORY


def leaves(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every command and the epilog of its help."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield path, parser.epilog or ""
    for action in below:
        for name, child in action.choices.items():
            yield from leaves(child, (*path, name))


COMMANDS = dict(leaves(build_parser()))


def test_all_registered_commands_can_be_called() -> None:
    assert {" ".join(path) for path in COMMANDS} == arguments.COMMANDS.keys()


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_ends_with_a_valid_example(path: tuple[str, ...]) -> None:
    output = run_cli(*path, "--help").out
    assert "example:\n  python -m rebar.aws" in output
    words = shlex.split(COMMANDS[path].partition("python -m rebar.aws")[2].replace("\\\n", " "))
    assert tuple(words[:2]) == path
    build_parser().parse_args(words)


def test_without_boto3_the_error_has_its_code() -> None:
    code = "import sys; sys.modules['boto3'] = sys.modules['botocore'] = None\n"
    code += "from rebar.cli import run_command; from rebar.aws.__main__ import main\n"
    code += "run_command(main, ['snapshot', 'list'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert "[aws-boto3-missing]" in done.stderr
