"""Questions to the scripts are answered without torch, and Ctrl-C before the start is one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rebar.config import ConfigError, options_of
from rebar.config.options import short_names
from rebar.training.command_line import parse_command_line
from rebar.training.config import TrainConfig
from tests.conftest import REPOSITORY

IMPORTS = """
import runpy, sys
sys.argv = {argv!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", sorted({{"torch", "numba", "torchvision"}} & set(sys.modules)))
"""


@pytest.mark.parametrize("script", ["train_imagenet.py", "evaluate.py", "write_dataset.py"])
@pytest.mark.parametrize("question", ["--help", "--help-all", "--print-config"])
def test_questions_import_neither_torch_nor_numba(script: str, question: str) -> None:
    argv = [script, question, *(["--split", "train"] if script == "write_dataset.py" else [])]
    command = [sys.executable, "-c", IMPORTS.format(argv=argv)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("imported: []\n")
    assert len(done.stdout.splitlines()) > 10


def test_ctrl_c_while_torch_is_imported_is_one_line(tmp_path: Path) -> None:
    """The import of torch is one that announces itself and then blocks."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    process = subprocess.Popen(
        [sys.executable, "train_imagenet.py"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "interrupted\n")


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit):
        parse_command_line(argv)
    return capsys.readouterr().out


def test_help_shows_common_options_and_help_all_shows_every_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    brief, complete = printed(capsys, "--help"), printed(capsys, "--help-all")
    assert brief.index("examples:") < brief.index("--epochs N")
    assert len(brief.splitlines()) < 60
    options = list(options_of(TrainConfig))
    flags = [item.shortest_flag(short_names(options)) for item in options]
    assert [flag for flag in flags if f"\n  {flag}" not in complete] == []
    assert sum(f"\n  {flag}" in brief for flag in flags) >= 15


def test_help_shows_the_values_of_the_recipe_as_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert "number of epochs [16]" in printed(capsys, "--help")
    assert "number of epochs [88]" in printed(capsys, "--help", "--config-file", "rn50_configs/rn50_88_epochs.yaml")


def test_wrong_value_of_a_flag_that_sets_several_options_is_reported_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse_command_line(["--resolution", "abc", "--epochs", "x"])
    assert str(error.value).count("--resolution = 'abc'") == 1
    assert str(error.value).count("--epochs = 'x'") == 1
