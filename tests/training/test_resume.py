"""A run that was told to begin anew does so once for the same command, or the same torchrun."""

import dataclasses
import os
from pathlib import Path

import pytest

from rebar.reporting.run_folder import RunFolder
from rebar.storage.run_manifest import Origin, Progress, RunManifest, Stored, read_origin
from rebar.training.checkpoint import CheckpointConfig
from rebar.training.config import TrainConfig
from rebar.training.distributed import World
from rebar.training.resume import begin, resolve_resume


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A folder with an earlier run."""
    made = RunFolder(tmp_path / "run")
    made.prepare(afresh=True)
    made.last_checkpoint.write_text("earlier")
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "other.pt"
    path.write_text("other")
    return path


def meant(folder: RunFolder, world: World, resume: str | Path, *, overwrite: bool = False) -> str:
    """What --resume comes to."""
    config = TrainConfig(checkpoint=CheckpointConfig(resume=str(resume), overwrite=overwrite))
    return resolve_resume(config, folder, world).checkpoint.resume


def test_from_a_file_it_begins_once(
    folder: RunFolder, file: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert meant(folder, world, file) == str(file)
    begin(str(file), folder)
    assert folder.last_checkpoint.read_text() == "other"  # never again the earlier run's
    assert folder.last_checkpoint.with_name("previous.pt").read_text() == "earlier"
    capsys.readouterr()
    assert meant(folder, world, file) == "auto"
    assert capsys.readouterr().out.count("\n") == 1
    assert meant(folder, world, os.path.relpath(file)) == "auto"
    assert meant(folder, world, file, overwrite=True) == str(file)


def test_the_file_may_have_moved_or_changed_since(folder: RunFolder, file: Path, world: World) -> None:
    begin(str(file), folder)
    moved = file.rename(file.with_name("moved.pt"))
    assert meant(folder, world, moved) == "auto"
    assert meant(folder, world, file) == "auto"
    moved.write_text("another")
    assert meant(folder, world, moved) == str(moved)


@pytest.mark.parametrize("name", ["last.pt", "previous.pt", "epoch_001.pt"])
def test_from_a_checkpoint_of_its_own(name: str, folder: RunFolder, world: World) -> None:
    own = folder.last_checkpoint.with_name(name)
    if not own.exists():
        own.write_text("own")
    content = own.read_text()
    begin(str(own), folder)
    assert folder.last_checkpoint.read_text() == own.read_text() == content
    folder.last_checkpoint.unlink()
    folder.last_checkpoint.write_text("further")
    assert meant(folder, world, own) == "auto"


def test_a_run_that_is_gone_begins_again(folder: RunFolder, file: Path, world: World) -> None:
    begin(str(file), folder)
    folder.last_checkpoint.unlink()
    assert meant(folder, world, file) == str(file)
    begin(str(file), folder)
    folder.prepare(afresh=True)
    assert not folder.origin.exists()


def test_afresh_once_for_each_torchrun(folder: RunFolder, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    begin("none", folder)
    assert meant(folder, world, "none", overwrite=True) == "none"  # without torchrun, the next command
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    begin("none", folder)
    assert meant(folder, world, "none", overwrite=True) == "auto"
    assert meant(folder, world, "none") == "auto"
    origin = read_origin(folder.origin)
    assert origin is not None
    folder.origin.write_text(folder.origin.read_text().replace(origin.agent, "another"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert meant(folder, world, "none", overwrite=True) == "none"


def test_after_a_restart_another_machine_may_be_the_first(
    folder: RunFolder, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job1")
    begin("none", folder)
    origin = read_origin(folder.origin)
    assert origin is not None
    folder.origin.write_text(folder.origin.read_text().replace(origin.agent, "another"))
    assert meant(folder, world, "none", overwrite=True) == "none"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert meant(folder, world, "none", overwrite=True) == "auto"


def test_what_does_not_train_takes_the_file_it_is_given(folder: RunFolder, file: Path, world: World) -> None:
    begin(str(file), folder)
    config = TrainConfig(checkpoint=CheckpointConfig(resume=str(file)))
    for setting in ("eval_only", "dry_run", "find_lr"):
        training = dataclasses.replace(config.training, **{setting: True})
        assert resolve_resume(dataclasses.replace(config, training=training), folder, world).checkpoint.resume == str(
            file
        )


def test_the_manifest_of_an_uploaded_run_keeps_it() -> None:
    stored = {"last.pt": Stored("checkpoints/a.pt", "a" * 64, 1)}
    for origin in (None, Origin("/other.pt", "b" * 64, "host 1 2", "job1", "c" * 64)):
        manifest = RunManifest(Progress(1, 20, 1.0), stored, "host", origin)
        assert RunManifest.from_json(manifest.to_json()) == manifest
