"""scripts/setup.sh, with apt-get, sudo and nvidia-smi replaced by scripts that record their calls."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "scripts"
OLD = "sys.version_info = (3, 9);"
Result = subprocess.CompletedProcess[str]


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path


def run(*command: str | Path, folder: Path, **commands: str) -> Result:
    """Run a command with some programs replaced: name to script."""
    for name, script in commands.items():
        executable(folder / "bin" / name.replace("_", "-"), script)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(folder)}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, timeout=60)


def call_setup(function: str, folder: Path, **commands: str) -> Result:
    """Call a function of setup.sh."""
    return run("bash", "-c", f"source {SCRIPTS}/setup.sh; log=/dev/null; {function}", folder=folder, **commands)


def install(*packages: str, folder: Path, **commands: str) -> Result:
    return run(SCRIPTS / "install_system_packages.sh", *packages, folder=folder, **commands)


def test_setup_without_root_prints_the_command_to_run(tmp_path: Path) -> None:
    missing = {"dpkg_query": "exit 1", "id": "echo 1000", "sudo": "exit 1", "apt_get": "exit 99"}
    result = install("g++", "libturbojpeg0-dev", folder=tmp_path, **missing)
    assert result.returncode == 1
    assert "apt-get install --yes --no-install-recommends g++ libturbojpeg0-dev" in result.stderr


def test_installed_packages_need_neither_root_nor_apt(tmp_path: Path) -> None:
    installed = {"dpkg_query": "echo -n installed", "id": "echo 1000", "sudo": "exit 1", "apt_get": "exit 99"}
    result = install("g++", folder=tmp_path, **installed)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_passwordless_sudo_installs_only_what_is_missing(tmp_path: Path) -> None:
    partly = "[[ ${!#} == present ]] && echo -n installed"
    result = install("present", "absent", folder=tmp_path, dpkg_query=partly, id="echo 1000", sudo='echo "sudo $*"')
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1].endswith("DPkg::Lock::Timeout=300 absent")


def test_setup_without_apt_names_the_missing_packages(tmp_path: Path) -> None:
    shell = {"PATH": str(tmp_path)}
    for name in ("bash", "env"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run([SCRIPTS / "install_system_packages.sh", "g++"], capture_output=True, text=True, env=shell)
    assert done.returncode == 1
    assert "g++" in done.stderr
    assert "environment.yml" in done.stderr


def test_failure_shows_the_end_of_the_log(tmp_path: Path) -> None:
    failing = "bash -c 'echo the reason; exit 7'"
    result = call_setup(f"log={tmp_path}/setup.log; run_logged 'a step' {failing}; echo unreachable", tmp_path)
    assert result.returncode == 1
    assert "the reason" in result.stderr
    assert f"{tmp_path}/setup.log" in result.stderr
    assert "unreachable" not in result.stdout


@pytest.mark.parametrize(
    ("capability", "cuda", "indexes"),
    [
        ("9.0", "13.0", ""),  # PyPI's build fits
        ("8.6", "12.8", "cu128 cu126"),  # the driver is older than CUDA 13
        ("8.0", "12.4", "cu126"),
        ("7.0", "13.0", "cu126"),  # CUDA 13 dropped V100
        ("7.5", "13.0", ""),
    ],
)
def test_torch_index_matches_driver_and_gpu(capability: str, cuda: str, indexes: str, tmp_path: Path) -> None:
    nvidia_smi = f'if [ $# -gt 0 ]; then echo {capability}; else echo "| CUDA Version: {cuda}   |"; fi'
    result = call_setup("torch_index_names", tmp_path, nvidia_smi=nvidia_smi)
    assert " ".join(result.stdout.split()) == indexes


@pytest.mark.parametrize(("version", "fits"), [("(3, 9)", False), ("(3, 10)", True), ("(3, 14)", False)])
def test_supported_pythons(version: str, fits: bool, tmp_path: Path) -> None:
    python = executable(tmp_path / "python", f'exec {sys.executable} -c "import sys; sys.version_info = {version}; $2"')
    assert (call_setup(f"python_fits {python}", tmp_path).returncode == 0) is fits


def test_named_python_must_exist(tmp_path: Path) -> None:
    result = call_setup("venv=/nowhere; PYTHON=/no/python; create_venv", tmp_path)
    assert result.returncode == 1
    assert "PYTHON=/no/python is not a Python from 3.10 to 3.13" in result.stderr


def test_an_environment_of_an_unsupported_python_is_kept(tmp_path: Path) -> None:
    python = executable(tmp_path / ".venv/bin/python", f'exec {sys.executable} "${{@//import sys;/import sys; {OLD}}}"')
    result = call_setup(f"venv={tmp_path}/.venv; create_venv", tmp_path)
    assert result.returncode == 1
    assert ".venv holds Python 3.9" in result.stderr
    assert python.exists()
