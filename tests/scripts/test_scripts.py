"""The shell scripts: they parse, explain wrong use, and call what they should.

Where a script would install or train, it runs in a copy of the repository whose Python only prints
its arguments.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*(REPOSITORY / "scripts").glob("*.s[hb]*"), REPOSITORY / ".ci" / "run"])
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
OLD = "sys.version_info = (3, 9);"
Result = subprocess.CompletedProcess[str]


def run(*command: str | Path, **environment: str) -> Result:
    variables = {**os.environ, **environment}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=variables)


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path


def words(text: str) -> str:
    """Text with every run of white space made one space."""
    return " ".join(text.split())


# ------------------------------------------------------------------------------------------ all


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_parses_and_may_be_executed(script: Path) -> None:
    assert run("bash", "-n", script).stderr == ""
    assert os.access(script, os.X_OK)


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    assert run(str(SHELLCHECK), *SCRIPTS).stdout == ""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("setup.sh --everything", "unknown option --everything"),
        ("quickstart.sh now", "usage:"),
        ("launch_single_gpu.sh", "usage:"),
        ("validation_run.sh", "usage:"),
        ("launch_single_gpu.sh /data 16", "usage:"),
        ("launch_single_gpu.sh /data many 512 12", "EPOCHS must be a whole number above zero, not 'many'"),
        ("launch_multi_gpu.sh 0 /data 16 512 12", "NGPUS must be a whole number above zero, not '0'"),
        ("launch_multi_gpu.sh 8 /nowhere 16 512 12", "there is no /nowhere/train.beton"),
    ],
)
def test_wrong_use_is_explained(command: str, message: str) -> None:
    name, *arguments = command.split()
    result = run(REPOSITORY / "scripts" / name, *arguments)
    assert result.returncode != 0
    assert message in result.stderr


# ------------------------------------------------------------------------------------------ set-up


def call_setup(function: str, tmp_path: Path, **commands: str) -> Result:
    """Call a function of setup.sh with some commands replaced: name to what they do."""
    for name, script in commands.items():
        executable(tmp_path / "bin" / name.replace("_", "-"), script)
    return run(
        "bash",
        "-c",
        f"source {REPOSITORY}/scripts/setup.sh; log=/dev/null; {function}",
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        XDG_CACHE_HOME=str(tmp_path),
    )


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="not a Debian or Ubuntu machine")
def test_without_root_the_command_to_run_is_printed(tmp_path: Path) -> None:
    result = call_setup(
        "install_system_packages g++ libturbojpeg0-dev", tmp_path, id="echo 1000", sudo="exit 1", apt_get="exit 99"
    )
    assert result.returncode == 1
    assert "apt-get install --yes --no-install-recommends g++ libturbojpeg0-dev" in result.stderr


def test_nothing_missing_needs_no_root(tmp_path: Path) -> None:
    result = call_setup("install_system_packages", tmp_path, id="echo 1000", sudo="exit 1", apt_get="exit 99")
    assert (result.returncode, result.stderr) == (0, "")


def test_passwordless_sudo_is_used(tmp_path: Path) -> None:
    result = call_setup("as_root apt-get update", tmp_path, id="echo 1000", sudo='echo "sudo $*"')
    assert result.stdout == "sudo -n apt-get update\n"


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
        ("9.0", "13.0", ""),  # PyPI's own build fits
        ("8.6", "12.8", "cu128 cu126"),  # the driver is older than CUDA 13
        ("8.0", "12.4", "cu126"),
        ("7.0", "13.0", "cu126"),  # CUDA 13 knows no V100
        ("7.5", "13.0", ""),
    ],
)
def test_torch_fits_driver_and_gpu(capability: str, cuda: str, indexes: str, tmp_path: Path) -> None:
    nvidia_smi = f'if [ $# -gt 0 ]; then echo {capability}; else echo "| CUDA Version: {cuda}   |"; fi'
    result = call_setup("torch_index_names", tmp_path, nvidia_smi=nvidia_smi)
    assert words(result.stdout) == indexes


@pytest.mark.parametrize(("version", "fits"), [("(3, 9)", False), ("(3, 10)", True), ("(3, 14)", False)])
def test_supported_pythons(version: str, fits: bool, tmp_path: Path) -> None:
    python = executable(tmp_path / "python", f'exec {sys.executable} -c "import sys; sys.version_info = {version}; $2"')
    assert (call_setup(f"python_fits {python}", tmp_path).returncode == 0) is fits


def test_named_python_must_exist(tmp_path: Path) -> None:
    result = call_setup("venv=/nowhere; PYTHON=/no/python; install_system_and_python", tmp_path)
    assert result.returncode == 1
    assert "PYTHON=/no/python cannot be used" in result.stderr


def test_an_environment_of_another_python_is_not_touched(tmp_path: Path) -> None:
    python = executable(tmp_path / ".venv/bin/python", f'exec {sys.executable} "${{@//import sys;/import sys; {OLD}}}"')
    result = call_setup(f"venv={tmp_path}/.venv; install_system_and_python", tmp_path)
    assert result.returncode == 1
    assert ".venv holds Python 3.9" in result.stderr
    assert python.exists()


# ------------------------------------------------------------------------------------------ launching


@pytest.fixture
def pretended(tmp_path: Path) -> Path:
    """A repository whose Python prints its arguments and whose set-up does nothing."""
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "scripts")
    executable(tmp_path / "scripts" / "setup.sh", "true")
    executable(tmp_path / ".venv" / "bin" / "python", 'echo "called: $*"')
    recipe = tmp_path / "rn50_configs" / "rn50_16_epochs.yaml"
    recipe.parent.mkdir()
    recipe.touch()
    for split in ("train", "val"):
        (tmp_path / f"{split}.beton").write_text("packed")
    return tmp_path


def test_single_gpu_trains_in_one_process(pretended: Path) -> None:
    result = run(pretended / "scripts/launch_single_gpu.sh", pretended, "16", "512", "12", "--lr.lr", "0.5")
    assert words(result.stdout) == (
        f"called: {pretended}/train_imagenet.py --config-file {pretended}/rn50_configs/rn50_16_epochs.yaml "
        f"--data.train_dataset {pretended}/train.beton --data.val_dataset {pretended}/val.beton "
        "--epochs 16 --training.batch_size 512 --data.num_workers 12 --lr.lr 0.5"
    )


def test_multi_gpu_trains_under_torchrun_and_warns_of_missing_gpus(pretended: Path) -> None:
    launcher = pretended / "scripts/launch_multi_gpu.sh"
    result = run(launcher, "8", pretended, "16", "512", "12", CUDA_VISIBLE_DEVICES="0,1")
    assert "called: -m torch.distributed.run --standalone --nproc_per_node=8" in result.stdout
    assert "8 processes, but only 2 visible GPUs" in result.stderr


def test_config_chooses_the_recipe(pretended: Path) -> None:
    recipe = pretended / "my.yaml"
    recipe.touch()
    result = run(pretended / "scripts/launch_single_gpu.sh", pretended, "1", "2", "3", CONFIG=str(recipe))
    assert f"--config-file {recipe}" in result.stdout


@pytest.mark.parametrize(
    ("environment", "flags"),
    [
        ({"RESET_SCHED": "1"}, "--reset-schedule"),
        ({"FREEZE_LR": "true"}, "--freeze-lr=0"),
        ({"FREEZE_LR": "1", "FREEZE_LR_VALUE": "0.01", "RESET_SCHED": "1"}, "--reset-schedule --freeze-lr=0.01"),
        ({"FREEZE_LR": "0", "RESET_SCHED": ""}, ""),
    ],
)
def test_the_schedule_of_a_run_that_goes_on(environment: dict[str, str], flags: str, pretended: Path) -> None:
    result = run(pretended / "scripts/launch_single_gpu.sh", pretended, "1", "2", "3", "--debug", **environment)
    assert words(result.stdout).endswith(" ".join(f"--data.num_workers 3 {flags} --debug".split()))


# ------------------------------------------------------------------------------------------ quick start


def quickstart(pretended: Path, last_event: str | None) -> str:
    """Run the pretended quick start over a run whose log ends with an event; return its output."""
    work = pretended / "work"
    (work / "run").mkdir(parents=True)
    if last_event:
        (work / "run" / "log.jsonl").write_text(f'{{"event": "{last_event}", "time": 1.0}}\n')
    result = run(pretended / "scripts" / "quickstart.sh", REBAR_QUICKSTART_DIR=str(work))
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_quickstart_does_all_steps_and_says_where_things_are(pretended: Path) -> None:
    output = quickstart(pretended, last_event=None)
    steps = ["build_fashion_mnist_tree.py", "--split train", "--split val", "train_imagenet.py", "evaluate.py"]
    assert [step for step in steps if f"called: {step}" in output or step in output] == steps
    for number in range(1, 7):
        assert f"[{number}/6]" in output
    for file in ("log.jsonl", "plot.png", "checkpoints/last.pt"):
        assert f"{pretended}/work/run/{file}" in output


def test_quickstart_keeps_complete_betons(pretended: Path) -> None:
    (pretended / "work").mkdir()
    shutil.copy(pretended / "train.beton", pretended / "work")
    output = quickstart(pretended, last_event=None)
    assert "--split train" not in output
    assert "--split val" in output


def test_quickstart_goes_on_with_an_interrupted_run(pretended: Path) -> None:
    assert "--resume none" not in quickstart(pretended, last_event="epoch")


def test_quickstart_starts_a_finished_run_afresh(pretended: Path) -> None:
    assert "--resume none --overwrite" in quickstart(pretended, last_event="end")


@pytest.mark.parametrize(("failing", "step"), [("train_imagenet.py", 5), ("evaluate.py", 6)])
def test_quickstart_stops_where_a_step_fails_and_says_so_once(failing: str, step: int, pretended: Path) -> None:
    executable(pretended / ".venv" / "bin" / "python", f'[[ $1 != {failing} ]] || exit 3; echo "called: $*"')
    (pretended / "work" / "run").mkdir(parents=True)
    result = run(pretended / "scripts" / "quickstart.sh", REBAR_QUICKSTART_DIR=str(pretended / "work"))
    assert result.returncode == 3
    assert result.stderr.strip() == f"Stopped in step {step} of 6. Start it again to go on from there."
    assert "Done" not in result.stdout
