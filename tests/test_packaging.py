"""The wheel works outside the repository: console commands, bundled recipes, a short training run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Data

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the installed wheel, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # pip builds in the source folder: leave the repository alone
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, source], check=True)
    tracked = subprocess.run(["git", "diff", "HEAD", "--binary"], cwd=REPOSITORY, capture_output=True, check=True)
    if tracked.stdout:
        subprocess.run(["git", "apply"], cwd=source, input=tracked.stdout, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", folder / "site", source], check=True)
    return folder / "site"


def run_installed(site: Path, folder: Path, command: str, *args: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a console command of the installed wheel in a folder outside the repository."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    arguments = [sys.executable, site / "bin" / command, *args]
    return subprocess.run(
        [*map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("command", ["rebar-write", "rebar-evaluate", "rebar-doctor", "rebar-aws"])
def test_console_commands_print_their_help(command: str, installed: Path, tmp_path: Path) -> None:
    done = run_installed(installed, tmp_path, command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")


def test_recipes_of_the_current_folder_and_then_bundled_ones_are_found(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "rn50_configs").mkdir()
    (tmp_path / "rn50_configs" / "rn50_32_epochs.yaml").write_text("training: {batch_size: 3}\n")
    recipes = ["--config-file", "rn50_configs/rn50_16_epochs.yaml", "--config-file", "rn50_configs/rn50_32_epochs.yaml"]
    done = run_installed(installed, tmp_path, "rebar-train", *recipes, "--print-config")
    assert done.returncode == 0, done.stderr
    assert "epochs: 16" in done.stdout
    assert "batch_size: 3\n" in done.stdout


@pytest.mark.nightly
def test_wheel_writes_trains_and_evaluates(installed: Path, tmp_path: Path, data: Data) -> None:
    paths = ["--split", "train", "--data-dir", data.tree, "--write-path", tmp_path / "train.beton"]
    assert run_installed(installed, tmp_path, "rebar-write", *paths).returncode == 0
    command = data.training_command(tmp_path / "run", "--data.train_dataset", str(tmp_path / "train.beton"))[1:]
    done = run_installed(installed, tmp_path, "rebar-train", *command)
    assert done.returncode == 0, done.stderr
    done = run_installed(installed, tmp_path, "rebar-evaluate", "--checkpoint", tmp_path / "run", "--data", data.val)
    assert "top-1" in done.stdout
