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


def test_contributing_example_adds_an_augmentation_technique(tmp_path: Path) -> None:
    (module,) = re.findall(r'```python\n("""Random inversion.*?)```', CONTRIBUTING, re.DOTALL)
    (line,) = re.findall(r'```python\n( *"Inversion": Technique.*?)```', CONTRIBUTING, re.DOTALL)
    (option,) = re.findall(r"```python\n( *inversion: float = option.*?)```", CONTRIBUTING, re.DOTALL)
    copy_repository(tmp_path)
    package = tmp_path / "rebar/augment"
    (package / "inversion.py").write_text(module)
    policy, options = package / "policy.py", package / "options.py"
    text = replace_once(policy.read_text(), '    "ColorJitter": Technique(', f'{line}    "ColorJitter": Technique(')
    first = "from rebar.augment.mixing import"
    policy.write_text(replace_once(text, first, f"from rebar.augment.inversion import invert\n{first}"))
    options.write_text(replace_once(options.read_text(), "    random_erasing: ", f"{option}    random_erasing: "))

    command = [sys.executable, "train_imagenet.py", "--inversion", "0.25", "--print-config"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "inversion: 0.25" in done.stdout
    code = (
        "import torch; from rebar.augment.policy import *; config = RegularizationConfig(inversion=0.25); "
        "regularizer = build_regularizer(config, num_classes=9, seed=0, rank=0); "
        "images = torch.zeros(4000, 3, 1, 1, dtype=torch.uint8); augmented = regularizer.augment(images, 7); "
        "assert torch.equal(augmented, regularizer.augment(images, 7)); "
        "print(describe_techniques(config)[0], set(augmented.unique().tolist()) == {0, 255}, end=' '); "
        "print(augmented.float().mean().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, value, extremes, mean = done.stdout.split()
    assert (name, value, extremes) == ("inversion", "0.25", "True")
    assert float(mean) == pytest.approx(255 / 4, rel=0.1)


def test_files_and_registries_in_contributing_exist() -> None:
    names = re.findall(r"`((?:rebar|tests|scripts|docs|benchmarks|rn50_configs)/[\w/.]*)`", CONTRIBUTING)
    assert [name for name in names if not (REPOSITORY / name).exists()] == []
    registries = re.findall(r"`([A-Z]+)`(?: and `\w+`)? in (?:`([\w/.]+)`|the same file)", CONTRIBUTING)
    assert {name for name, _ in registries} == {"OPERATIONS", "SCHEDULES", "ARCHITECTURES", "KINDS", "GROUPS", "CHECKS"}
    assert [name for name, path in registries if path and name not in (REPOSITORY / path).read_text()] == []
