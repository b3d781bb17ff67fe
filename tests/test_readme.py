"""The commands in the README and the docs work."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Data, read_events, run, torchrun

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/datasets.md",
    "docs/recipes.md",
    "docs/resume.md",
    "docs/training.md",
]
TINY = ["--config-file", "rn50_configs/tiny.yaml", "--num-classes", "0"]


def commands(page: str) -> list[list[str]]:
    """Return the commands in a page's bash blocks, split into arguments, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / page).read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [args for line in lines if (args := shlex.split(line, comments=True))]


def script_arguments(args: list[str]) -> list[str] | None:
    """Return ``[script, argument, ...]`` of a command that runs one of the repository's scripts, else None."""
    for position, arg in enumerate(args):
        if arg in ("write_dataset.py", "train_imagenet.py", "evaluate.py"):
            return args[position:]
    return None


ALL_COMMANDS = [(page, args) for page in PAGES for args in commands(page)]
SCRIPT_COMMANDS = [(page, arguments) for page, args in ALL_COMMANDS if (arguments := script_arguments(args))]


def test_pages_contain_commands() -> None:
    assert {page for page, _ in ALL_COMMANDS} == set(PAGES)
    assert {arguments[0] for _, arguments in SCRIPT_COMMANDS} >= {
        "write_dataset.py",
        "train_imagenet.py",
        "evaluate.py",
    }


@pytest.mark.parametrize("arguments", [arguments for _, arguments in SCRIPT_COMMANDS], ids=" ".join)
def test_commands_in_pages_have_valid_flags(arguments: list[str]) -> None:
    if "--help" in arguments:
        run(*arguments)
    elif {"--verify", "--info", "--stats"} & set(arguments):
        run(*arguments, "--help")
    else:
        run(*arguments, "--print-config")


@pytest.mark.parametrize("page", PAGES)
def test_files_mentioned_in_pages_exist(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    typed = re.findall(r"\b(?:scripts|rn50_configs)/\w+\.\w+", " ".join(" ".join(args) for args in commands(page)))
    assert [name for name in linked if not ((REPOSITORY / page).parent / name).exists()] == []
    assert [name for name in typed if not (REPOSITORY / name).exists()] == []


def test_readme_imagenet_commands_run_end_to_end(data: Data, tmp_path: Path) -> None:
    """Run the commands under "ImageNet" with a smaller recipe, given by a second config file."""
    steps = [args for args in commands("README.md") if script_arguments(args)][:4]
    assert [args[0] for args in steps] == ["python", "python", "torchrun", "python"]
    environment = {"IMAGENET_DIR": str(data.tree), "WRITE_DIR": str(tmp_path)}
    folder = tmp_path / "run"
    for args in steps:
        arguments = [arg.replace("$WRITE_DIR", str(tmp_path)) for arg in script_arguments(args) or []]
        arguments = [arg.replace("runs/g5_4gpu", str(folder)) for arg in arguments]
        if args[0] == "torchrun":
            small = [*TINY, "--epochs", "1", "--logging.folder", folder, "--world-size", "0"]
            done = run(*torchrun(2, *arguments, *small), **environment)
        else:
            done = run(*arguments, **environment)
    assert "top-1" in done.stdout
    assert len(read_events(folder, "epoch")) == 1


def test_plots_and_doctor_commands_run(data: Data, finished_run: Path) -> None:
    run("-m", "rebar.reporting.plots", finished_run)
    run("-m", "rebar.doctor", "--quiet")
