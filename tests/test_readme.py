"""The commands in the README and the docs work."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
import train_imagenet
import write_dataset
from rebar.config import options_of
from rebar.training.aliases import ALIASES
from rebar.training.config import TrainConfig
from tests.conftest import REPOSITORY, Data, read_events, run, torchrun

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/datasets.md",
    "docs/index.md",
    "docs/recipes.md",
    "docs/resume.md",
    "docs/training.md",
]
SCRIPTS = {"write_dataset.py": write_dataset, "train_imagenet.py": train_imagenet, "evaluate.py": evaluate}
TINY = ["--config-file", "rn50_configs/tiny.yaml", "--num-classes", "0"]


def commands(page: str) -> list[list[str]]:
    """Return the commands in a page's bash blocks, split into arguments, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / page).read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [args for line in lines if (args := shlex.split(line, comments=True))]


def script_arguments(args: list[str]) -> list[str] | None:
    """Return ``[script, argument, ...]`` of a command that runs one of the repository's scripts, else None."""
    for position, arg in enumerate(args):
        if arg in SCRIPTS:
            return args[position:]
    return None


ALL_COMMANDS = [(page, args) for page in PAGES for args in commands(page)]
SCRIPT_COMMANDS = [(page, arguments) for page, args in ALL_COMMANDS if (arguments := script_arguments(args))]


def test_pages_contain_commands() -> None:
    assert {page for page, _ in ALL_COMMANDS} == set(PAGES)
    assert {arguments[0] for _, arguments in SCRIPT_COMMANDS} == set(SCRIPTS)


@pytest.mark.parametrize("arguments", [arguments for _, arguments in SCRIPT_COMMANDS], ids=" ".join)
def test_commands_in_pages_have_valid_flags(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    script, *flags = arguments
    stop_after_parsing = "--help" if {"--verify", "--info", "--stats"} & set(flags) else "--print-config"
    with pytest.raises(SystemExit) as stopped:
        SCRIPTS[script].main([*flags, stop_after_parsing])
    assert stopped.value.code == 0


@pytest.mark.parametrize("page", PAGES)
def test_files_mentioned_in_pages_exist(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    typed = re.findall(r"\b(?:scripts|rn50_configs)/\w+\.\w+", " ".join(" ".join(args) for args in commands(page)))
    assert [name for name in linked if not ((REPOSITORY / page).parent / name).exists()] == []
    assert [name for name in typed if not (REPOSITORY / name).exists()] == []


def test_docs_build_as_a_site_without_broken_links(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {str(path.relative_to(tmp_path).parent) for path in tmp_path.rglob("index.html")}
    assert pages >= {path.stem for path in (REPOSITORY / "docs").glob("*.md") if path.stem != "index"}


def test_every_flag_on_the_page_for_users_of_other_projects_is_accepted() -> None:
    page = (REPOSITORY / "docs/coming_from.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    accepted = [flag for row in rows for cell in row[1:] for flag in re.findall(r"--[a-z][\w-]+", cell)]
    accepted += [flag for row in rows if row[1].startswith("the same") for flag in re.findall(r"--[a-z][\w-]+", row[0])]
    names = {option.path.rpartition(".")[2].replace("_", "-") for option in options_of(TrainConfig)}
    known = {f"--{name}" for name in names} | {name for alias in ALIASES for name in alias.names}
    assert len(accepted) > 30
    assert [flag for flag in accepted if flag not in known | {"--weights", "--data", "--nproc_per_node"}] == []


def test_readme_imagenet_commands_run_end_to_end(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run the commands under "ImageNet" with a smaller recipe, given by a second config file."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("IMAGENET_DIR", str(data.tree))
    monkeypatch.setenv("WRITE_DIR", str(tmp_path))
    steps = [args for args in commands("README.md") if script_arguments(args)][:4]
    assert [args[0] for args in steps] == ["python", "python", "torchrun", "python"]
    folder = tmp_path / "run"
    for args in steps:
        arguments = [arg.replace("$WRITE_DIR", str(tmp_path)) for arg in script_arguments(args) or []]
        script, *flags = [arg.replace("runs/g5_4gpu", str(folder)) for arg in arguments]
        if args[0] == "torchrun":
            small = [*TINY, "--epochs", "1", "--logging.folder", folder, "--world-size", "0"]
            run(*torchrun(1, script, *flags, *small))
        else:
            SCRIPTS[script].main(flags)
    assert "top-1" in capsys.readouterr().out
    assert len(read_events(folder, "epoch")) == 1
