"""docs/loader.md imports existing names and mentions existing modules."""

import re
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/loader.md").read_text()


def test_loader_guide_imports_existing_names() -> None:
    imports = re.findall(r"^from (rebar\S*) import ([\w, ]+)", GUIDE, re.MULTILINE)
    assert imports
    for module, names in imports:
        assert not [name for name in names.split(",") if not hasattr(import_module(module), name.strip())]


def test_loader_guide_mentions_existing_modules() -> None:
    files = re.findall(r"`([\w/]+\.py)`", GUIDE)
    assert len(files) > 5
    missing = [name for name in files if not any((ROOT / base / name).is_file() for base in ("rebar/loading", ""))]
    assert missing == []
