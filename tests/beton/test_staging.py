"""Staging: verified copies, resumed after a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from rebar.beton import BetonFile, ImagePolicy, write_beton
from rebar.beton.staging import main
from rebar.errors import RebarError
from tests.beton.conftest import flip_bit
from tests.beton.test_writer import OneImage
from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "stage_dataset.sh"


@pytest.fixture(scope="module")
def large(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a raw file of 40 small pages, and a copy of it without sidecar."""
    folder = tmp_path_factory.mktemp("large")
    content = next(image_tree.glob("*/*")).read_bytes()
    policy = ImagePolicy(write_mode="raw")
    options = {"order": np.arange(400), "progress": False, "page_size": 1 << 21}
    write_beton(OneImage(content, 400), folder / "train.beton", policy=policy, **options)
    shutil.copy(folder / "train.beton", folder / "plain.beton")
    return folder


@pytest.fixture
def source(large: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(large, tmp_path / "source"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def stage(*arguments: object) -> None:
    main(list(map(str, arguments)))


def error_of(*arguments: object) -> RebarError:
    with pytest.raises(RebarError) as raised:
        stage(*arguments)
    return raised.value


def test_script_copies_a_folder(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    for expected in ("copied", "already complete"):
        done = subprocess.run([SCRIPT, source, target], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert f"train.beton: {expected}" in done.stdout
        assert f"plain.beton: {expected}" in done.stdout
    assert names(target) == names(source)
    for name in names(source):
        assert (target / name).read_bytes() == (source / name).read_bytes()


def test_script_without_target_prints_usage(source: Path) -> None:
    assert subprocess.run([SCRIPT, source], capture_output=True).returncode == 2


def test_stage_replaces_a_damaged_copy(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy" / "train.beton"
    stage(source / "train.beton", copy.parent)
    flip_bit(copy, int(BetonFile.open(copy).offsets[200]))
    stage(source / "train.beton", copy.parent)
    assert capsys.readouterr().out.count("train.beton: copied") == 2
    assert copy.read_bytes() == (source / "train.beton").read_bytes()


def test_stage_replaces_another_file_only_with_overwrite(source: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    beton, sidecar = (tmp_path / "copy" / name for name in ("train.beton", "train.beton.json"))
    for mine in ([beton, sidecar], [beton], [sidecar]):
        for path in mine:
            path.write_bytes(b"mine")
        assert error_of(source / "train.beton", beton.parent).code == "write-target-exists"
        assert [path for path in (beton, sidecar) if path.exists()] == mine
        assert {path.read_bytes() for path in mine} == {b"mine"}
        stage(source / "train.beton", beton.parent, "--overwrite")
        assert beton.read_bytes() == (source / "train.beton").read_bytes()
        assert sidecar.read_bytes() == (source / "train.beton.json").read_bytes()
        beton.unlink()
        sidecar.unlink()


def test_stage_without_sidecar_compares_the_content(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "plain.beton"
    stage(source / "plain.beton", copy)
    sidecar = copy.with_name("plain.beton.json")
    sidecar.write_bytes(b"of an earlier file")
    flip_bit(copy, copy.stat().st_size // 2)
    assert error_of(source / "plain.beton", copy).code == "write-target-exists"
    stage(source / "plain.beton", copy, "--overwrite")
    assert copy.read_bytes() == (source / "plain.beton").read_bytes()
    assert not sidecar.exists()


@pytest.mark.parametrize(("offset", "message"), [(-1, "tables"), (5 << 21, "the page at byte 10,485,760")])
def test_stage_refuses_a_damaged_source(source: Path, tmp_path: Path, offset: int, message: str) -> None:
    size = (source / "train.beton").stat().st_size
    flip_bit(source / "train.beton", offset % size)
    error = error_of(source / "train.beton", tmp_path / "copy")
    assert error.code == "beton-changed"
    assert message in str(error)
    assert not (tmp_path / "copy" / "train.beton").exists()


def test_stage_refuses_a_truncated_source(source: Path, tmp_path: Path) -> None:
    os.truncate(source / "train.beton", 1 << 22)
    assert error_of(source / "train.beton", tmp_path / "copy").code == "beton-changed"


@pytest.fixture(scope="module")
def interrupted(large: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source of 240 MB, and the target folder of a copy that was killed after its fifth block or later."""
    source = tmp_path_factory.mktemp("large_source") / "plain.beton"
    shutil.copy(large / "plain.beton", source)
    os.truncate(source, 240 << 20)  # zeros at the end: large enough to be killed before the end
    target = tmp_path_factory.mktemp("interrupted") / "plain.beton"
    journal = target.with_name(".plain.beton.parts")
    command = [sys.executable, "-m", "rebar.beton.staging", source, target.parent, "--num-workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=REPOSITORY)
    deadline = time.monotonic() + 60
    while not journal.exists() or len(journal.read_bytes().splitlines()) < 6:
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    return source, target.parent


def test_stage_resumes_a_killed_copy(interrupted: tuple[Path, Path], tmp_path: Path) -> None:
    source, folder = interrupted[0], Path(shutil.copytree(interrupted[1], tmp_path / "copy"))
    stage(source, folder)
    assert (folder / source.name).read_bytes() == source.read_bytes()
    assert names(folder) == {source.name}


def test_stage_detects_a_block_lost_by_the_disk(interrupted: tuple[Path, Path], tmp_path: Path) -> None:
    """As after a power failure: the journal records a block that is not on disk."""
    source, folder = interrupted[0], Path(shutil.copytree(interrupted[1], tmp_path / "copy"))
    flip_bit(folder / ".plain.beton.part", 100)
    error = error_of(source, folder)
    assert error.code == "staging-verify-failed"
    assert "at byte 0" in str(error)
    stage(source, folder)
    assert (folder / source.name).read_bytes() == source.read_bytes()


def test_stage_refuses_too_little_space_before_copying(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    assert error_of(source / "train.beton", tmp_path / "copy").code == "disk-full"
    assert not (tmp_path / "copy" / "train.beton").exists()


def test_staging_main_raises_for_missing_or_equal_paths(source: Path, tmp_path: Path) -> None:
    assert error_of(tmp_path / "absent.beton", tmp_path / "copy").code == "beton-not-found"
    assert error_of(source, source).code == "staging-same-file"
    assert error_of(tmp_path, tmp_path / "copy").code == "beton-not-found"
