"""Tests of rebar.training.resume; loading a checkpoint is tested in tests/test_resume.py."""

import dataclasses
import os
from pathlib import Path

import pytest

from rebar.reporting.run_folder import RunFolder
from rebar.storage.run_store import Origin, Progress, RunManifest, StoredCheckpoint, read_origin
from rebar.training.checkpoint import CheckpointError
from rebar.training.config import CheckpointConfig, TrainConfig
from rebar.training.distributed import World
from rebar.training.resume import normalize_resume, record_origin, resolve_resume


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A folder with an earlier run."""
    created = RunFolder(tmp_path / "run")
    created.prepare(from_scratch=True)
    created.last_checkpoint.write_text("earlier")
    return created


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "other.pt"
    path.write_text("other")
    return path


def resolved(folder: RunFolder, world: World, resume: str | Path, *, overwrite: bool = False) -> str:
    """Return the resolved value of --resume."""
    config = TrainConfig(checkpoint=CheckpointConfig(resume=str(resume), overwrite=overwrite))
    return resolve_resume(config, folder, world).checkpoint.resume


def test_resume_from_a_file_starts_once(
    folder: RunFolder, file: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolved(folder, world, file) == str(file)
    record_origin(str(file), folder)
    assert folder.last_checkpoint.read_text() == "other"  # not the earlier run's
    assert folder.last_checkpoint.with_name("previous.pt").read_text() == "earlier"
    capsys.readouterr()
    assert resolved(folder, world, file) == "auto"
    assert capsys.readouterr().out.count("\n") == 1
    assert resolved(folder, world, os.path.relpath(file)) == "auto"
    assert resolved(folder, world, file, overwrite=True) == str(file)


@pytest.mark.parametrize("overwrite", [False, True])
def test_resume_from_a_file_keeps_an_earlier_run_unless_overwrite_is_given(
    overwrite: bool, folder: RunFolder, file: Path
) -> None:
    earlier = {folder.last_checkpoint: "earlier", folder.log: "log", folder.config: "config"}
    earlier |= {folder.last_checkpoint.with_name(name): name for name in ("best.pt", "epoch_003.pt")}
    for number in (1, 2):
        for path, content in earlier.items():
            path.unlink(missing_ok=True)
            path.write_text(content)
        record_origin(str(file), folder, overwrite=overwrite)
        with folder.log.open("a") as log:
            log.write("a record of the new run")
        for path, content in earlier.items():
            kept = path.with_name(f"{path.name}.{number}")
            assert kept.exists() != overwrite
            assert overwrite or kept.read_text() == content


def test_resume_from_the_newest_checkpoint_itself_keeps_no_copies(folder: RunFolder) -> None:
    record_origin(str(folder.last_checkpoint), folder)
    assert not list(folder.path.rglob("*.1"))


def test_resume_recognizes_a_moved_or_replaced_file(folder: RunFolder, file: Path, world: World) -> None:
    record_origin(str(file), folder)
    moved = file.rename(file.with_name("moved.pt"))
    assert resolved(folder, world, moved) == "auto"
    assert resolved(folder, world, file) == "auto"
    moved.write_text("another")
    assert resolved(folder, world, moved) == str(moved)


@pytest.mark.parametrize("name", ["last.pt", "previous.pt", "epoch_001.pt"])
def test_resume_from_a_checkpoint_of_the_run_itself(name: str, folder: RunFolder, world: World) -> None:
    own = folder.last_checkpoint.with_name(name)
    if not own.exists():
        own.write_text("own")
    content = own.read_text()
    record_origin(str(own), folder)
    assert folder.last_checkpoint.read_text() == own.read_text() == content
    folder.last_checkpoint.unlink()
    folder.last_checkpoint.write_text("further")
    assert resolved(folder, world, own) == "auto"


def test_resume_from_a_file_starts_again_after_the_run_was_deleted(folder: RunFolder, file: Path, world: World) -> None:
    record_origin(str(file), folder)
    folder.last_checkpoint.unlink()
    assert resolved(folder, world, file) == str(file)
    record_origin(str(file), folder)
    folder.prepare(from_scratch=True)
    assert not folder.origin.exists()


def test_resume_none_starts_once_per_torchrun(folder: RunFolder, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    record_origin("none", folder)
    assert resolved(folder, world, "none", overwrite=True) == "none"  # without torchrun, the next command
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    record_origin("none", folder)
    assert resolved(folder, world, "none", overwrite=True) == "auto"
    assert resolved(folder, world, "none") == "auto"
    origin = read_origin(folder.origin)
    assert origin is not None
    folder.origin.write_text(folder.origin.read_text().replace(origin.agent, "another"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert resolved(folder, world, "none", overwrite=True) == "none"


def test_resume_none_starts_once_if_rank_0_moves_to_another_node(
    folder: RunFolder, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job1")
    record_origin("none", folder)
    origin = read_origin(folder.origin)
    assert origin is not None
    folder.origin.write_text(folder.origin.read_text().replace(origin.agent, "another"))
    assert resolved(folder, world, "none", overwrite=True) == "none"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert resolved(folder, world, "none", overwrite=True) == "auto"


def test_eval_only_and_dry_run_always_use_the_given_file(folder: RunFolder, file: Path, world: World) -> None:
    record_origin(str(file), folder)
    config = TrainConfig(checkpoint=CheckpointConfig(resume=str(file)))
    for option in ("eval_only", "dry_run", "find_lr"):
        training = dataclasses.replace(config.training, **{option: True})
        assert resolve_resume(dataclasses.replace(config, training=training), folder, world).checkpoint.resume == str(
            file
        )


def test_manifest_of_an_uploaded_run_contains_the_origin() -> None:
    stored = {"last.pt": StoredCheckpoint("checkpoints/a.pt", "a" * 64, 1)}
    for origin in (None, Origin("/other.pt", "b" * 64, "host 1 2", "job1", "c" * 64)):
        manifest = RunManifest(Progress(1, 20, 1.0), stored, "host", origin)
        assert RunManifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("given", "meant"),
    [("auto", "auto"), ("last", "auto"), ("true", "auto"), ("none", "none"), ("false", "none"), ("a/b.pt", "a/b.pt")],
)
def test_normalize_resume_translates_words(given: str, meant: str, folder: RunFolder) -> None:
    assert normalize_resume(given, folder) == meant


def test_normalize_resume_finds_the_last_checkpoint_of_a_folder(folder: RunFolder, tmp_path: Path) -> None:
    other = RunFolder(tmp_path / "other")
    other.prepare(from_scratch=True)
    with pytest.raises(CheckpointError) as caught:
        normalize_resume(str(other.path), folder)
    assert caught.value.code == "checkpoint-not-found"
    other.last_checkpoint.write_bytes(b"")
    for given in (other.path, other.last_checkpoint.parent):
        assert normalize_resume(str(given), folder) == str(other.last_checkpoint)
    assert normalize_resume(str(folder.path), folder) == "auto"
