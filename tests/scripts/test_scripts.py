"""The shell scripts: syntax, usage messages, and the commands they run.

Scripts that install or train run in a copy of the repository whose Python prints its arguments.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*(REPOSITORY / "scripts").glob("*.s[hb]*"), REPOSITORY / ".ci" / "run"])
SHELLCHECK, HADOLINT = (
    shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for program in ("shellcheck", "hadolint")
)
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
    """Collapse whitespace to single spaces."""
    return " ".join(text.split())


# ------------------------------------------------------------------------------------------ all


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses_and_is_executable(script: Path) -> None:
    assert run("bash", "-n", script).stderr == ""
    assert os.access(script, os.X_OK)


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_all_scripts_pass_shellcheck() -> None:
    assert run(str(SHELLCHECK), *SCRIPTS).stdout == ""


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_dockerfile_passes_hadolint() -> None:
    checked = run(str(HADOLINT), REPOSITORY / "scripts" / "Dockerfile")
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("setup.sh --everything", "unknown option --everything"),
        ("quickstart.sh now", "usage:"),
        ("launch_single_gpu.sh", "usage:"),
        ("validation_run.sh", "usage:"),
        ("launch_single_gpu.sh /data 16", "usage:"),
        ("launch_single_gpu.sh /data many 512 12", "EPOCHS must be a positive integer, not 'many'"),
        ("launch_multi_gpu.sh 0 /data 16 512 12", "NGPUS must be a positive integer, not '0'"),
        ("launch_multi_gpu.sh 8 /nowhere 16 512 12", "/nowhere has neither train.beton and val.beton"),
    ],
)
def test_wrong_arguments_print_a_message(command: str, message: str) -> None:
    name, *arguments = command.split()
    result = run(REPOSITORY / "scripts" / name, *arguments)
    assert result.returncode != 0
    assert message in result.stderr


# ------------------------------------------------------------------------------------------ launching


@pytest.fixture
def fake_repository(tmp_path: Path) -> Path:
    """Return a repository whose Python prints its arguments and whose setup does nothing."""
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "scripts")
    executable(tmp_path / "scripts" / "setup.sh", "true")
    executable(tmp_path / ".venv" / "bin" / "python", 'echo "called: $*"')
    recipe = tmp_path / "rn50_configs" / "rn50_16_epochs.yaml"
    recipe.parent.mkdir()
    recipe.touch()
    for split in ("train", "val"):
        (tmp_path / f"{split}.beton").write_text("packed")
    return tmp_path


def test_launch_single_gpu_starts_one_process(fake_repository: Path) -> None:
    result = run(fake_repository / "scripts/launch_single_gpu.sh", fake_repository, "16", "512", "12", "--lr.lr", "0.5")
    assert words(result.stdout) == (
        f"called: {fake_repository}/train_imagenet.py --config-file {fake_repository}/rn50_configs/rn50_16_epochs.yaml "
        f"--data.train_dataset {fake_repository} --data.val_dataset {fake_repository} "
        "--epochs 16 --training.batch_size 512 --data.num_workers 12 --start-ramp 11 --end-ramp 13 --lr.lr 0.5"
    )


def test_launch_multi_gpu_starts_torchrun_and_warns_about_missing_gpus(fake_repository: Path) -> None:
    launcher = fake_repository / "scripts/launch_multi_gpu.sh"
    result = run(launcher, "8", fake_repository, "16", "512", "12", CUDA_VISIBLE_DEVICES="0,1")
    assert "called: -m torch.distributed.run --standalone --nproc_per_node=8" in result.stdout
    assert "8 processes, but only 2 visible GPUs" in result.stderr


def test_launch_single_gpu_with_config(fake_repository: Path) -> None:
    recipe = fake_repository / "my.yaml"
    recipe.touch()
    result = run(fake_repository / "scripts/launch_single_gpu.sh", fake_repository, "1", "2", "3", CONFIG=str(recipe))
    assert f"--config-file {recipe}" in result.stdout


@pytest.mark.parametrize(
    ("flags", "schedule"),
    [
        ("--max-lr 0.5", "--scheduler onecycle"),
        ("--max_lr=0.5", "--scheduler onecycle"),
        ("--max-lr 0.5 --scheduler cosine", ""),
        ("--lr 0.5", ""),
    ],
)
def test_launch_script_uses_onecycle_with_max_lr_unless_a_scheduler_is_given(
    flags: str, schedule: str, fake_repository: Path
) -> None:
    result = run(fake_repository / "scripts/launch_single_gpu.sh", fake_repository, "1", "2", "3", *flags.split())
    assert words(result.stdout).endswith(" ".join(f"--data.num_workers 3 {schedule} {flags}".split()))


@pytest.mark.parametrize(("epochs", "ramp"), [("88", "65 --end-ramp 76"), ("24", "17 --end-ramp 20")])
def test_launch_script_moves_the_resolution_ramp_like_the_recipes(
    epochs: str, ramp: str, fake_repository: Path
) -> None:
    result = run(fake_repository / "scripts/launch_single_gpu.sh", fake_repository, epochs, "2", "3")
    assert f"--start-ramp {ramp}" in result.stdout


def test_launch_script_takes_an_image_folder(fake_repository: Path, tmp_path: Path) -> None:
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    result = run(fake_repository / "scripts/launch_single_gpu.sh", tmp_path / "imagenet", "1", "2", "3")
    assert f"--data.train_dataset {tmp_path}/imagenet --data.val_dataset {tmp_path}/imagenet" in result.stdout


# ------------------------------------------------------------------------------------------ quick start


def quickstart(fake_repository: Path, last_event: str | None) -> str:
    """Run the quick start in a repository whose run log ends with this event. Returns the output."""
    work = fake_repository / "work"
    (work / "run").mkdir(parents=True, exist_ok=True)
    if last_event:
        (work / "run" / "log.jsonl").write_text(f'{{"event": "{last_event}", "time": 1.0}}\n')
    result = run(fake_repository / "scripts" / "quickstart.sh", REBAR_QUICKSTART_DIR=str(work))
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_quickstart_runs_all_steps_and_prints_the_paths(fake_repository: Path) -> None:
    output = quickstart(fake_repository, last_event=None)
    steps = ["build_fashion_mnist_tree.py", "--split train", "--split val", "train_imagenet.py", "evaluate.py"]
    assert [step for step in steps if f"called: {step}" in output or step in output] == steps
    for number in range(1, 8):
        assert f"[{number}/7]" in output
    for file in ("log.jsonl", "plot.png", "checkpoints/last.pt"):
        assert f"{fake_repository}/work/run/{file}" in output


def test_quickstart_keeps_complete_betons(fake_repository: Path) -> None:
    (fake_repository / "work").mkdir()
    shutil.copy(fake_repository / "train.beton", fake_repository / "work")
    output = quickstart(fake_repository, last_event=None)
    assert "--split train" not in output
    assert "--split val" in output


def test_quickstart_resumes_an_interrupted_run(fake_repository: Path) -> None:
    assert "--resume none" not in quickstart(fake_repository, last_event="epoch")


def test_quickstart_restarts_from_scratch_after_all_steps(fake_repository: Path) -> None:
    quickstart(fake_repository, last_event=None)
    output = quickstart(fake_repository, last_event="end")
    assert "--resume none --overwrite" in output
    # The checkpoints of the completed run do not fit the options of the dry run.
    (dry_run,) = (
        line for line in output.splitlines() if "$ python" in line and "demo.yaml" in line and "--dry-run" in line
    )
    assert f"--logging.folder {fake_repository}/work/dry_run " in dry_run


def test_quickstart_does_not_repeat_a_finished_training_if_a_later_step_failed(fake_repository: Path) -> None:
    output = quickstart(fake_repository, last_event="end")
    assert "already trained" in output
    assert "demo.yaml" not in output
    assert "called: evaluate.py" in output


@pytest.mark.parametrize(
    ("speeds", "options"),
    [
        ("1,520 at 24 px, 1,130 at 28 px", "--epochs 3 --logging.folder"),
        ("550 at 24 px, 380 at 28 px", "--epochs 2 --end-ramp 1 --logging.folder"),
        ("190 at 28 px", "--epochs 1 --min-res 28 --round-to 32 --end-ramp 0 --data-subset 25000 --logging.folder"),
        ("40 at 28 px", "--epochs 1 --min-res 28 --round-to 32 --end-ramp 0 --data-subset 5400 --logging.folder"),
    ],
)
def test_quickstart_shortens_the_training_on_a_slow_machine(speeds: str, options: str, fake_repository: Path) -> None:
    report = f'[[ $* != *--dry-run* ]] || echo "    images/s: {speeds}"'
    executable(fake_repository / ".venv" / "bin" / "python", f'echo "called: $*"\n{report}')
    output = quickstart(fake_repository, last_event=None)
    assert options in output
    assert ("training is shortened" in output) == ("--epochs 3" not in options)
    # The options are kept for a resume, when the measured speed may differ.
    assert options in quickstart(fake_repository, last_event="epoch")


@pytest.mark.parametrize(("failing", "step"), [("train_imagenet.py", 5), ("evaluate.py", 6)])
def test_quickstart_stops_at_a_failing_step_with_one_message(failing: str, step: int, fake_repository: Path) -> None:
    executable(fake_repository / ".venv" / "bin" / "python", f'[[ $1 != {failing} ]] || exit 3; echo "called: $*"')
    (fake_repository / "work" / "run").mkdir(parents=True)
    result = run(fake_repository / "scripts" / "quickstart.sh", REBAR_QUICKSTART_DIR=str(fake_repository / "work"))
    assert result.returncode == 3
    (message,) = result.stderr.strip().splitlines()
    assert message.startswith(f"Stopped in step {step} of 7.")
    assert "Done" not in result.stdout
