"""The messages that the troubleshooting page quotes are the program's."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs/troubleshooting.md").read_text()
SYMPTOMS = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| ")]
QUOTED = [quoted for symptom in SYMPTOMS for quoted in re.findall(r"`([^`]+)`", symptom)]
VALUE = "\0"


def texts_of(tree: ast.AST) -> Iterator[str]:
    """All string literals, f-strings with VALUE where a value stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@cache
def all_texts() -> str:
    files = sorted((REPOSITORY / "rebar").rglob("*.py"))
    return "\n".join(text for file in files for text in texts_of(ast.parse(file.read_text())))


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_one_of_ours(quoted: str) -> None:
    pattern = re.escape(quoted).replace(r"\.\.\.", VALUE)
    assert re.search(pattern, all_texts()), quoted


def test_access_to_all_services_is_explained() -> None:
    for service in ("Weights & Biases", "hf_repo", "AWS credentials", "S3 answers", "access denied (HTTP"):
        assert any(service in quoted for quoted in QUOTED)
