"""The example in CONTRIBUTING.md works in a copy of the repository."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()
SCHEDULES = Path("rebar/optim/schedules.py")


def replace_once(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def copy_repository(folder: Path) -> None:
    shutil.copytree(REPOSITORY / "rebar", folder / "rebar", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "rn50_configs", folder / "rn50_configs")
    shutil.copy(REPOSITORY / "train_imagenet.py", folder)


def test_contributing_example_adds_a_schedule(tmp_path: Path) -> None:
    (function,) = re.findall(r"```python\n(def sqrt_lr.*?)```", CONTRIBUTING, re.DOTALL)
    (line,) = re.findall(r"```python\n( *\"sqrt\": Schedule.*?)```", CONTRIBUTING, re.DOTALL)
    copy_repository(tmp_path)
    file = tmp_path / SCHEDULES
    text = replace_once(file.read_text(), "\ndef linear_lr(", f"\n{function}\n\ndef linear_lr(")
    file.write_text(replace_once(text, '    "constant": Schedule(', f'{line}    "constant": Schedule('))

    command = [sys.executable, "train_imagenet.py", "--lr-schedule-type", "sqrt", "--min-lr", "0.1", "--print-config"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lr_schedule_type: sqrt" in done.stdout
    assert "min_lr" not in done.stderr
    code = (
        "from rebar.optim.schedules import LearningRateConfig, build_base_schedule; "
        "config = LearningRateConfig(lr=2.0, lr_schedule_type='sqrt'); "
        "rate = build_base_schedule(config, epochs=4, steps_per_epoch=25, peak=2.0); "
        "print(*(rate(step) for step in (0, 75, 100)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [float(word) for word in done.stdout.split()] == pytest.approx([2.0, 1.0, 0.0])


def test_files_and_registries_in_contributing_exist() -> None:
    names = re.findall(r"`((?:rebar|tests|scripts|docs|benchmarks|rn50_configs)/[\w/.]*)`", CONTRIBUTING)
    assert [name for name in names if not (REPOSITORY / name).exists()] == []
    registries = re.findall(r"`([A-Z]+)`(?: and `\w+`)? in (?:`([\w/.]+)`|the same file)", CONTRIBUTING)
    assert {name for name, _ in registries} == {"OPERATIONS", "SCHEDULES", "ARCHITECTURES", "KINDS", "GROUPS", "CHECKS"}
    assert [name for name, path in registries if path and name not in (REPOSITORY / path).read_text()] == []
