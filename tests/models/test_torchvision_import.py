"""torchvision comes in even where its compiled operators do not fit torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = "from rebar.models.resnets import import_torchvision; tv = import_torchvision(); "


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def plain_import_fails() -> bool:
    return python("import torchvision").returncode != 0


def test_it_works_where_the_plain_import_fails(plain_import_fails: bool) -> None:
    if not plain_import_fails:
        pytest.skip("torch and torchvision are of one build here: nothing to repair")
    done = python(
        OURS
        + "import torchvision; assert torchvision is tv is import_torchvision(); print('resnet50' in dir(tv.models))"
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_nothing_is_declared_where_it_is_not_needed(plain_import_fails: bool) -> None:
    done = python(OURS + "from rebar.training import torchvision_import; print(len(torchvision_import._kept))")
    assert done.stdout == f"{int(plain_import_fails)}\n", done.stderr


def test_other_errors_are_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('something else')")
    done = python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); " + OURS)
    assert "RuntimeError: something else" in done.stderr
