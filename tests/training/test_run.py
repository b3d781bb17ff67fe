"""What is left of a run whose attempt ends before its first step, or whose results cannot be drawn."""

import json
import shutil
from pathlib import Path

import pytest

import train_imagenet
from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder, RunStatus, State, read_status, write_status
from tests.conftest import Data, read_events

ABSENT = ["--data.train_dataset", "absent.beton"]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.prepare(afresh=True)
    return made


def stands(folder: RunFolder, state: State) -> RunStatus:
    status = RunStatus(state, "SIGTERM", 3, 70, 75)
    write_status(folder.status, status)
    return status


def refused(data: Data, folder: RunFolder, *words: str) -> str:
    with pytest.raises(RebarError) as error:
        train_imagenet.main([str(word) for word in data.training_command(folder.path, *words)[1:]])
    return str(error.value)


@pytest.mark.parametrize("state", ["interrupted", "running", "failed"])
def test_an_attempt_that_is_refused_is_what_the_status_tells(state: State, data: Data, folder: RunFolder) -> None:
    stands(folder, state)
    reason = refused(data, folder, *ABSENT)
    assert read_status(folder.status) == RunStatus("failed", reason, 3, 70, 1)


def test_before_the_data_are_known_too(data: Data, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    stands(folder, "interrupted")
    monkeypatch.delenv("WRITE_DIR", raising=False)
    with pytest.raises(RebarError, match="no train data"):
        train_imagenet.main(["--logging.folder", str(folder.path)])
    status = read_status(folder.status)
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", 1)


def test_a_complete_run_and_one_under_way_stay_what_they_are(data: Data, folder: RunFolder) -> None:
    finished = stands(folder, "finished")
    refused(data, folder, *ABSENT)
    assert read_status(folder.status) == finished
    running = stands(folder, "running")
    with folder.claimed():
        refused(data, folder, *ABSENT)
    refused(data, folder, *ABSENT, "--dry-run")
    assert read_status(folder.status) == running


def test_only_the_main_process_writes_it(data: Data, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stands(folder, "interrupted")
    monkeypatch.setenv("RANK", "1")
    refused(data, folder, *ABSENT)
    assert read_status(folder.status) == before


def test_a_complete_run_whose_images_cannot_be_written_is_complete(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(shutil.copytree(finished_run, tmp_path / "run"))
    for path in (folder.plot, folder.report):
        path.unlink()
        (path / "in the way").mkdir(parents=True)
    train_imagenet.main([str(word) for word in data.training_command(folder.path)[1:]])
    warnings = capsys.readouterr().err
    assert f"{folder.plot}: cannot be written: " in warnings
    assert f"Later: python -m rebar.reporting.plots {folder.path}" in warnings
    assert f"Later: python -m rebar.reporting {folder.path}" in warnings
    assert json.loads(folder.status.read_text())["state"] == "finished"
    assert len(read_events(folder.path, "end")) == 1
    assert not list(folder.path.glob(".*partial*"))
