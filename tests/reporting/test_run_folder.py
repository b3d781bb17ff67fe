"""The folder of a run: what is resumed, and what may be deleted."""

from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder

ALL = {"config.yaml", "log.jsonl", "status.json", "report.html", "plot.png", "origin.json", "notes.txt"}
ALL |= {"checkpoints/last.pt", "checkpoints/best.pt", "checkpoints/epoch_010.pt"}


@pytest.fixture
def empty(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs/mine")


@pytest.fixture
def used(empty: RunFolder) -> RunFolder:
    """A folder with an earlier run, and a file of the user's."""
    empty.prepare(afresh=True)
    for name in ALL:
        (empty.path / name).write_text("earlier")
    return empty


def files_in(folder: RunFolder) -> set[str]:
    return {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()} - {".lock"}


def test_what_is_resumed(empty: RunFolder) -> None:
    assert empty.checkpoint_to_resume("auto") is None
    empty.prepare(afresh=True)
    empty.last_checkpoint.write_text("a checkpoint")
    assert empty.checkpoint_to_resume("auto") == empty.last_checkpoint
    assert empty.checkpoint_to_resume("none") is None
    assert empty.checkpoint_to_resume("other.pt") == Path("other.pt")


def test_going_on_deletes_nothing(used: RunFolder) -> None:
    used.check_free("auto", overwrite=False)
    used.prepare(afresh=False)
    assert files_in(used) == ALL


def test_starting_afresh_must_be_asked_for_twice(used: RunFolder) -> None:
    with pytest.raises(RebarError, match=r"runs/mine holds an earlier run with a checkpoint: .*--overwrite"):
        used.check_free("none", overwrite=False)
    used.check_free("none", overwrite=True)
    assert files_in(used) == ALL  # asking deletes nothing yet


def test_starting_afresh_deletes_the_runs_files_only(used: RunFolder) -> None:
    used.prepare(afresh=True)
    assert files_in(used) == {"notes.txt"}


def test_a_run_that_never_saved_is_no_obstacle(used: RunFolder) -> None:
    used.last_checkpoint.unlink()
    used.check_free("none", overwrite=False)


def test_what_a_killed_save_left_is_cleaned_up(used: RunFolder) -> None:
    (used.last_checkpoint.parent / ".last.pt.partial-123").write_text("half of one")
    used.prepare(afresh=False)
    assert files_in(used) == ALL


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RebarError, match=r"logging.folder .*file/run cannot be written to: Not a directory"):
        RunFolder(tmp_path / "file/run").prepare(afresh=True)


def test_two_runs_do_not_share_a_folder(empty: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rebar.reporting.run_folder._PATIENCE", 0.2)
    with empty.claimed(), pytest.raises(RebarError, match="in use by another run"), RunFolder(empty.path).claimed():
        pass
    assert not empty.is_in_use()
    with empty.claimed():  # free again
        assert empty.is_in_use()
