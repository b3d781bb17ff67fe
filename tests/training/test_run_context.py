"""Tests of rebar.training.run_context."""

import json
import shutil
from pathlib import Path

import pytest

import train_imagenet
from rebar.reporting.run_folder import RunFolder
from tests.conftest import Data, read_events


def test_run_context_warns_if_plot_and_report_cannot_be_written(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(shutil.copytree(finished_run, tmp_path / "run"))
    for path in (folder.plot, folder.report):
        path.unlink()
        (path / "in the way").mkdir(parents=True)
    train_imagenet.main([str(word) for word in data.training_command(folder.path)[1:]])
    warnings = capsys.readouterr().err
    assert f"To retry: python -m rebar.reporting.plots {folder.path}" in warnings
    assert f"To retry: python -m rebar.reporting {folder.path}" in warnings
    assert json.loads(folder.status.read_text())["state"] == "finished"
    assert len(read_events(folder.path, "end")) == 1
    assert not list(folder.path.glob(".*partial*"))
