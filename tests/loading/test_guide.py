"""docs/loader.md speaks of what there is."""

import re
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/loader.md").read_text()


def test_what_the_guide_imports_is_there() -> None:
    imports = re.findall(r"^from (rebar\S*) import ([\w, ]+)", GUIDE, re.MULTILINE)
    assert imports
    for module, names in imports:
        assert not [name for name in names.split(",") if not hasattr(import_module(module), name.strip())]


def test_the_files_it_names_are_there() -> None:
    files = re.findall(r"`(\w+\.py)`", GUIDE)
    assert len(files) > 5
    assert [name for name in files if not (ROOT / "rebar/loading" / name).is_file()] == []
