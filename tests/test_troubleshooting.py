"""docs/troubleshooting.md names existing error codes and quotes messages of the program."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.conftest import REPOSITORY
from tests.test_errors import documented

PAGE = (REPOSITORY / "docs/troubleshooting.md").read_text()
SYMPTOMS = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| ")]
CODES = re.findall(r"`\[([^`\]]+)\]`", PAGE)
WARNINGS = [message for symptom in SYMPTOMS for message in re.findall(r"Warning: `([^`]+)`", symptom)]
VALUE = "\0"  # stands for a value in the text of an f-string


def literals(tree: ast.AST) -> Iterator[str]:
    """Yield all string literals, and f-strings with VALUE in place of each value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@cache
def program_text() -> str:
    files = sorted((REPOSITORY / "rebar").rglob("*.py"))
    return "\n".join(text for file in files for text in literals(ast.parse(file.read_text())))


@pytest.mark.parametrize("code", sorted(set(CODES)))
def test_codes_are_documented_in_errors_md(code: str) -> None:
    assert code in documented()


@pytest.mark.parametrize("message", WARNINGS)
def test_quoted_warnings_are_printed_by_the_program(message: str) -> None:
    assert message in program_text()


def test_common_failures_are_covered() -> None:
    assert len(WARNINGS) >= 4
    assert set(CODES) >= {
        *("training-diverged", "gpu-out-of-memory", "host-out-of-memory", "rank-lost", "disk-full"),
        *("checkpoint-damaged", "checkpoint-mismatch", "run-folder-locked"),
        *("hf-token-missing", "hf-request-refused", "hub-access-denied"),
        *("aws-credentials-missing", "aws-request-refused"),
    }
