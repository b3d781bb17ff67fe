"""``docs/errors.md`` documents every error code once, and no others."""

import ast
import pickle
import re
from collections import Counter
from pathlib import Path

from rebar.errors import RebarError
from rebar.loading import CorruptSampleError

ROOT = Path(__file__).resolve().parent.parent
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def codes_in_source() -> set[str]:
    """Return the string constants passed as ``code=``."""
    found: set[str] = set()
    for path in [*(ROOT / "rebar").rglob("*.py"), *ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                values = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                found |= {leaf.value for value in values for leaf in ast.walk(value) if _is_code(leaf)}  # type: ignore[attr-defined]
    return found


def _is_code(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def documented() -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/errors.md").read_text(), re.M)


def test_every_code_is_documented_once() -> None:
    counts = Counter(documented())
    assert [code for code, count in counts.items() if count > 1] == []
    assert codes_in_source() - set(counts) == set(), "missing in docs/errors.md"
    assert set(counts) - codes_in_source() == set(), "documented, but raised nowhere"


def test_codes_are_lower_case_words_with_hyphens() -> None:
    assert [code for code in documented() if not CODE.fullmatch(code)] == []


def test_pickling_keeps_code_and_attributes() -> None:
    plain = pickle.loads(pickle.dumps(RebarError("disk full", code="disk-full")))
    assert (str(plain), plain.code) == ("disk full", "disk-full")
    sample = pickle.loads(pickle.dumps(CorruptSampleError("bad", 3, "truncated")))
    assert (sample.index, sample.reason) == (3, "truncated")
