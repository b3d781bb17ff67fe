"""The commands in docs/datasets.md are valid, and its tables are complete."""

import re
import shlex
from pathlib import Path

import pytest

from rebar.beton.inspect import is_inspect_command, parse_arguments
from rebar.beton.selection import SUBSETS
from rebar.config import parse_config
from rebar.sources.registry import KINDS
from rebar.training.config import TrainConfig
from rebar.training.evaluate_options import EvaluateConfig
from write_dataset import WriteConfig

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs/datasets.md").read_text()
SCHEMAS = {"write_dataset.py": WriteConfig, "train_imagenet.py": TrainConfig, "evaluate.py": EvaluateConfig}
COMMANDS = re.findall(r"((?:write_dataset|train_imagenet|evaluate)\.py --[^\n]*)", "".join(GUIDE.split("```bash")[1:]))


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_command_is_valid(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    script, *args = shlex.split(command.replace("$", "").partition("#")[0])
    if is_inspect_command(args):
        parse_arguments(args)
    else:
        parse_config(SCHEMAS[script], args, description="")


def test_guide_documents_every_source_kind_and_subset() -> None:
    for kind in KINDS:
        assert f"\n| `{kind.name}` | `" in GUIDE
    for name, size in SUBSETS.items():
        assert f"`{name}`" in GUIDE
        assert f"{size:,}" in GUIDE
