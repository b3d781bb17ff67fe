"""The run folder: resuming, overwriting, locking, and ``status.json``."""

import json
import os
from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.storage.run_store import read_status

ALL = {"config.yaml", "log.jsonl", "status.json", "report.html", "plot.png", "origin.json", "notes.txt"}
ALL |= {"checkpoints/last.pt", "checkpoints/best.pt", "checkpoints/epoch_010.pt"}


@pytest.fixture
def empty(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs/mine")


@pytest.fixture
def used(empty: RunFolder) -> RunFolder:
    """A folder with an earlier run and a file of the user."""
    empty.prepare(from_scratch=True)
    for name in ALL:
        (empty.path / name).write_text("earlier")
    return empty


def files_in(folder: RunFolder) -> set[str]:
    return {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()} - {".lock"}


def test_checkpoint_to_resume(empty: RunFolder) -> None:
    assert empty.checkpoint_to_resume("auto") is None
    empty.prepare(from_scratch=True)
    empty.last_checkpoint.write_text("a checkpoint")
    assert empty.checkpoint_to_resume("auto") == empty.last_checkpoint
    assert empty.checkpoint_to_resume("none") is None
    assert empty.checkpoint_to_resume("other.pt") == Path("other.pt")


def test_prepare_to_resume_deletes_nothing(used: RunFolder) -> None:
    used.check_overwrite("auto", overwrite=False)
    used.prepare(from_scratch=False)
    assert files_in(used) == ALL


def test_check_overwrite_refuses_to_delete_a_checkpoint(used: RunFolder) -> None:
    with pytest.raises(RebarError, match="runs/mine") as caught:
        used.check_overwrite("none", overwrite=False)
    assert caught.value.code == "run-exists"
    used.check_overwrite("none", overwrite=True)
    assert files_in(used) == ALL


def test_prepare_from_scratch_deletes_only_files_of_the_run(used: RunFolder) -> None:
    used.prepare(from_scratch=True)
    assert files_in(used) == {"notes.txt"}


def test_prepare_from_scratch_keeps_the_log_of_epochs_whose_checkpoints_are_missing(used: RunFolder) -> None:
    for checkpoint in used.checkpoints():
        checkpoint.unlink()
    for number in (1, 2):
        used.log.write_text(json.dumps({"event": "epoch", "epoch": number}))
        used.prepare(from_scratch=True)
        assert json.loads(used.log.with_name(f"log.jsonl.{number}").read_text())["epoch"] == number
        assert not used.log.exists()


def test_check_overwrite_accepts_run_without_checkpoint(used: RunFolder) -> None:
    for checkpoint in used.last_checkpoint.parent.glob("*.pt"):
        checkpoint.unlink()
    used.check_overwrite("none", overwrite=False)


def test_newest_checkpoint_is_resumed_without_last_pt(used: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    folder = used.last_checkpoint.parent
    for age, name in enumerate(("epoch_009.pt", "best.pt", "epoch_010.pt")):
        (folder / name).write_text("a checkpoint")
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    used.last_checkpoint.unlink()
    assert used.checkpoint_to_resume("auto") == folder / "epoch_009.pt"
    assert "epoch_009.pt" in capsys.readouterr().err


def test_check_overwrite_refuses_to_delete_other_checkpoints(used: RunFolder) -> None:
    used.last_checkpoint.with_name("epoch_001.pt").write_text("a checkpoint")
    used.last_checkpoint.unlink()
    with pytest.raises(RebarError) as caught:
        used.check_overwrite("none", overwrite=False)
    assert caught.value.code == "run-exists"


def test_prepare_deletes_partial_checkpoints(used: RunFolder) -> None:
    (used.last_checkpoint.parent / ".last.pt.partial-123").write_text("partial")
    used.prepare(from_scratch=False)
    assert files_in(used) == ALL


def test_prepare_and_check_writable_report_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = RunFolder(tmp_path / "file/run")
    for check in (lambda: folder.prepare(from_scratch=True), folder.check_writable):
        with pytest.raises(RebarError, match="file/run") as caught:
            check()
        assert caught.value.code == "run-folder-not-writable"


def test_locked_excludes_other_runs(empty: RunFolder) -> None:
    with empty.locked(), pytest.raises(RebarError) as caught, RunFolder(empty.path).locked(timeout=0.2):
        pass
    assert caught.value.code == "run-folder-locked"
    assert not empty.is_locked()
    with empty.locked():
        assert empty.is_locked()


def test_read_status_returns_none_if_missing_or_invalid(tmp_path: Path) -> None:
    assert read_status(tmp_path / "status.json") is None
    (tmp_path / "status.json").write_text("{")
    assert read_status(tmp_path / "status.json") is None
