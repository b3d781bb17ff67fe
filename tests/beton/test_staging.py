"""scripts/stage_dataset.sh: a copy that is the same, or one clear error; broken off, it goes on."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rebar.beton import BetonFile, ImagePolicy, write_beton
from tests.beton.conftest import flip_byte
from tests.beton.test_writer import OneImage
from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "stage_dataset.sh"


@pytest.fixture(scope="module")
def large(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of forty small pages, raw."""
    folder = tmp_path_factory.mktemp("large")
    content = next(image_tree.glob("*/*")).read_bytes()
    policy = ImagePolicy(write_mode="raw")
    options = {"order": np.arange(400), "progress": False, "page_size": 1 << 21}
    write_beton(OneImage(content, 400), folder / "train.beton", policy=policy, **options)
    shutil.copy(folder / "train.beton", folder / "plain.beton")  # has no sidecar
    return folder


@pytest.fixture
def source(large: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(large, tmp_path / "source"))


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([SCRIPT, *map(str, words)], capture_output=True, text=True, timeout=120)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_is_copied_whole(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "made" / "for it"
    done = run(source, target)
    assert done.returncode == 0, done.stderr
    assert names(target) == names(source)
    for name in names(source):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    done = run(source, target)
    assert "train.beton: there already, and whole" in done.stdout
    assert "plain.beton: copied" in done.stdout


def test_a_copy_that_was_damaged_is_made_again(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "train.beton"
    assert run(source / "train.beton", copy.parent).returncode == 0
    flip_byte(copy, int(BetonFile.open(copy).offsets[200]))
    done = run(source / "train.beton", copy.parent)
    assert "copied" in done.stdout
    assert copy.read_bytes() == (source / "train.beton").read_bytes()


@pytest.mark.parametrize(
    ("place", "message"),
    [(-1, "tables do not match"), (5 << 21, "the page from byte 10,485,760 on does not match the sidecar's checksum")],
)
def test_a_damaged_source_is_refused(source: Path, tmp_path: Path, place: int, message: str) -> None:
    size = (source / "train.beton").stat().st_size
    flip_byte(source / "train.beton", place % size)
    done = run(source / "train.beton", tmp_path / "copy")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "copy" / "train.beton").exists()


def test_a_source_cut_short_is_refused(source: Path, tmp_path: Path) -> None:
    os.truncate(source / "train.beton", 1 << 22)
    done = run(source / "train.beton", tmp_path / "copy")
    assert done.returncode == 1
    assert "was changed, cut short or mixed up" in done.stderr


def kill_half_way(source: Path, target: Path) -> None:
    """Kill a copy behind its fifth block or later."""
    journal = target.with_name(f".{target.name}.staged")
    command = [SCRIPT, source, target.parent, "--num-workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline, header = time.monotonic() + 60, 150
    while not journal.exists() or journal.stat().st_size < header + 5 * 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()


def test_killed_it_goes_on(source: Path, tmp_path: Path) -> None:
    path, target = source / "plain.beton", tmp_path / "copy" / "plain.beton"
    os.truncate(path, 400 << 20)  # zeros behind: enough to be killed half-way
    kill_half_way(path, target)
    done = run(path, target.parent)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == path.read_bytes()
    assert names(target.parent) == {"plain.beton"}


def test_what_the_disk_lost_of_an_earlier_copy_is_noticed(source: Path, tmp_path: Path) -> None:
    """As after a power cut: the journal says more than the disk holds."""
    path, target = source / "plain.beton", tmp_path / "copy" / "plain.beton"
    os.truncate(path, 400 << 20)
    kill_half_way(path, target)
    flip_byte(target.with_name(".plain.beton.staging"), 100)
    done = run(path, target.parent)
    assert done.returncode == 1
    assert "what was written at byte 0 is not what the disk gives back; run the same command again" in done.stderr
    assert run(path, target.parent).returncode == 0
    assert target.read_bytes() == path.read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "none", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_too_little_space_is_said_before(source: Path, small_disk: Path) -> None:
    done = run(source / "train.beton", small_disk)
    assert done.returncode == 1
    assert "MB are needed but only 31 MB are free" in done.stderr
    assert not (small_disk / "train.beton").exists()


def test_mistakes(source: Path, tmp_path: Path) -> None:
    for words, message in (
        ((tmp_path / "absent.beton", tmp_path / "copy"), "absent.beton: cannot be read: No such file"),
        ((source, source), "is source and target at once"),
        ((tmp_path, tmp_path / "copy"), "there is no .beton file in it"),
    ):
        done = run(*words)
        assert done.returncode == 1
        assert message in done.stderr
    with contextlib.suppress(FileNotFoundError):
        assert names(tmp_path / "copy") == set()
    assert run(source).returncode == 2
