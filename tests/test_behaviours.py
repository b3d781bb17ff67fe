"""Every row of behaviours.yaml: commands of other ResNet-50 projects give the stated options, error or output."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import evaluate
import train_imagenet
import write_dataset
from rebar.aws.__main__ import main as aws
from rebar.errors import RebarError
from tests.conftest import REPOSITORY

ROWS = yaml.safe_load((REPOSITORY / "tests/behaviours.yaml").read_text())
VARIABLES = ("WRITE_DIR", "IMAGENET_ROOT", "HF_TOKEN", "RESET_SCHED", "FREEZE_LR", "FREEZE_LR_VALUE", "WORLD_SIZE")
NEEDS = {"GPU", "AWS", "Hugging Face Hub"}


@dataclass(frozen=True)
class Row:
    """A row of the file, with the names of its keys."""

    row: int
    idiom: str = ""
    typed: str = ""
    yaml: str = ""
    options: dict[str, Any] | None = None
    error: str = ""
    prints: list[str] = field(default_factory=list)
    python: str = ""
    documented: str = ""
    names: list[str] = field(default_factory=list)
    test: str = ""
    needs: str = ""


ALL = [Row(**row) for row in ROWS]


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its resulting options or the code of its error."""

    output: str
    options: dict[str, Any]
    error: str


def lr_range_test(argv: Sequence[str]) -> None:
    """Run scripts/lr_range_test.py."""
    spec = importlib.util.spec_from_file_location("lr_range_test", REPOSITORY / "scripts/lr_range_test.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(argv)


PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "train_imagenet.py": train_imagenet.main,
    "evaluate.py": evaluate.main,
    "write_dataset.py": write_dataset.main,
    "scripts/lr_range_test.py": lr_range_test,
    "aws": aws,
}


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Row], Outcome]:
    """Return a function that runs the command of a row in a folder with the repository's recipes."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "rn50_configs").symlink_to(REPOSITORY / "rn50_configs")
    monkeypatch.chdir(tmp_path)
    places = {"YAML": tmp_path / "given.yaml", "IMAGES": tmp_path / "images", "EMPTY": tmp_path / "empty"}
    for folder in (tmp_path / "images/train", tmp_path / "images/val", places["EMPTY"]):
        folder.mkdir(parents=True)
    for name, path in places.items():
        monkeypatch.setenv(name, str(path))

    def run_row(row: Row) -> Outcome:
        places["YAML"].write_text(row.yaml)
        words = shlex.split(os.path.expandvars(row.typed))
        while re.match(r"[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        program, *argv = words
        printed = ""
        if program.endswith(".sh"):
            done = run_script(tmp_path, program, argv)
            if done.returncode:
                return Outcome(done.stderr, {}, str(done.returncode))
            printed = done.stdout + done.stderr
            argv = done.stdout.partition("train_imagenet.py\n")[2].splitlines()
            program = "train_imagenet.py"
        if row.options is not None:
            argv.append("--print-config")
        error = ""
        try:
            PROGRAMS[program](argv)
        except SystemExit as ended:  # --print-config
            error = str(ended.code or "")
        except RebarError as raised:
            error = f"{raised.code}\n{raised}"
        out, err = capsys.readouterr()
        options = flatten_yaml(out) if row.options is not None and not error else {}
        return Outcome(printed + out + err + error, options, error.partition("\n")[0])

    return run_row


def run_script(folder: Path, script: str, argv: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run a shell script in a copy of the repository whose Python prints its arguments, one per line."""
    shutil.copytree(REPOSITORY / "scripts", folder / "scripts")
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/bash\nprintf '%s\\n' \"${@/*train_imagenet.py/train_imagenet.py}\"\n")
    python.chmod(0o755)
    return subprocess.run([str(folder / script), *argv], capture_output=True, text=True, cwd=folder)


def flatten_yaml(text: str) -> dict[str, Any]:
    """Return the options of a printed configuration by their full names."""
    return {
        f"{section}.{name}": value for section, part in yaml.safe_load(text).items() for name, value in part.items()
    }


@pytest.mark.parametrize("row", [row for row in ALL if row.typed], ids=lambda row: f"row{row.row}")
def test_command_gives_the_stated_result(row: Row, run: Callable[[Row], Outcome]) -> None:
    outcome = run(row)
    expected = {name: os.path.expandvars(v) if isinstance(v, str) else v for name, v in (row.options or {}).items()}
    assert outcome.error == row.error, outcome.output
    assert {name: outcome.options.get(name, "missing") for name in expected} == expected
    assert [word for word in row.prints if word not in outcome.output] == [], outcome.output


@pytest.mark.parametrize("row", [row for row in ALL if row.python], ids=lambda row: f"row{row.row}")
def test_python_statements_run(row: Row) -> None:
    exec(row.python, {})


@pytest.mark.parametrize("row", [row for row in ALL if row.documented], ids=lambda row: f"row{row.row}")
def test_documentation_has_the_section_with_the_names(row: Row) -> None:
    page, _, anchor = row.documented.partition("#")
    sections = sections_of((REPOSITORY / page).read_text())
    assert anchor in sections
    assert [name for name in row.names if name not in sections[anchor]] == []


def sections_of(text: str) -> dict[str, str]:
    """Return the sections of a Markdown page, with their subsections, by their anchors."""
    headings = list(
        re.finditer(r"^(#+) (.+)$", re.sub(r"```.*?```", lambda m: " " * len(m[0]), text, flags=re.S), re.M)
    )
    sections = {}
    for index, heading in enumerate(headings):
        later = (other.start() for other in headings[index + 1 :] if len(other[1]) <= len(heading[1]))
        anchor = re.sub(r"[^\w -]", "", heading[2].lower()).replace(" ", "-")
        sections[anchor] = text[heading.start() : next(later, len(text))]
    return sections


@pytest.mark.parametrize("row", [row for row in ALL if row.test], ids=lambda row: f"row{row.row}")
def test_named_test_exists(row: Row) -> None:
    path, _, name = row.test.partition("::")
    assert re.search(rf"^def {name}\(", (REPOSITORY / path).read_text(), re.M)


def test_every_row_is_checked() -> None:
    assert [row.row for row in ALL] == list(range(1, 139))
    checked = [
        bool(row.options is not None or row.error or row.prints or row.python or row.documented or row.test)
        for row in ALL
    ]
    assert all(checked)
    assert {row.needs for row in ALL} <= NEEDS | {""}
