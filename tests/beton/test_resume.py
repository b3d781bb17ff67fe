"""Interrupted runs of write_dataset.py: after resuming, the bytes equal those of an uninterrupted run."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from rebar.beton import BetonFile
from rebar.beton.partial_file import journal_path, partial_path
from rebar.beton.sidecar import sidecar_path
from rebar.beton.write_report import report_path
from tests.conftest import REPOSITORY, fill, mounted_tmpfs

COUNT = 90  # images of 562,500 bytes: 6.4 pages
PAGE = 8 << 20


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One class of distinct noise images, two of them bad."""
    folder = tmp_path_factory.mktemp("tree") / "noise"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (375 + COUNT, 500, 3), np.uint8)
    for number in range(COUNT):
        image = noise[number : number + 375]
        cv2.imwrite(str(folder / f"{number:03}.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    (folder / "020.png").write_bytes(b"")
    (folder / "070.png").write_bytes((folder / "070.png").read_bytes()[:300_000])
    return folder.parent


def command(tree: Path, target: Path, *words: str) -> list[str]:
    options = ["--write-mode", "raw", "--num-workers", "2", "--chunk-size", "3", "--on-bad-image", "repair", *words]
    given = ["--split", "train", "--data-dir", str(tree), "--write-path", str(target)]
    return [sys.executable, str(REPOSITORY / "write_dataset.py"), *given, *options]


def run(tree: Path, target: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(tree, target, *words), capture_output=True, text=True, timeout=120)


def start(tree: Path, target: Path) -> "subprocess.Popen[str]":
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(tree, target), start_new_session=True, **pipes)


def wait_for_pages(process: "subprocess.Popen[str]", target: Path, pages: int) -> None:
    deadline = time.monotonic() + 60
    while size_of(partial_path(target)) < (pages + 1) * PAGE:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def size_of(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the worker processes: the children of the fork server."""
    return [
        worker
        for child in psutil.Process(process.pid).children()
        for worker in child.children()
        if worker.status() != psutil.STATUS_ZOMBIE
    ]


def contents(target: Path) -> list[bytes]:
    return [path.read_bytes() for path in (target, sidecar_path(target), report_path(target))]


def check_no_other_files(target: Path) -> None:
    expected = {target.name, sidecar_path(target).name, report_path(target).name}
    assert {path.name for path in target.parent.iterdir()} == expected


@pytest.fixture(scope="module")
def uninterrupted(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    target = tmp_path_factory.mktemp("uninterrupted") / "a.beton"
    done = run(tree, target)
    assert done.returncode == 0, done.stderr
    assert "1 repaired, 1 skipped" in done.stdout
    assert len(BetonFile.open(target)) == COUNT - 1
    return contents(target)


def test_resume_after_the_writer_is_killed(tree: Path, tmp_path: Path, uninterrupted: list[bytes]) -> None:
    target = tmp_path / "a.beton"
    for pages in (2, 4):
        process = start(tree, target)
        wait_for_pages(process, target, pages)
        process.kill()
        process.communicate(timeout=30)  # returns once all workers have exited
        assert not target.exists()
    done = run(tree, target)
    assert done.returncode == 0, done.stderr
    assert contents(target) == uninterrupted
    check_no_other_files(target)


def test_resume_after_a_worker_is_killed(tree: Path, tmp_path: Path, uninterrupted: list[bytes]) -> None:
    target = tmp_path / "a.beton"
    process = start(tree, target)
    wait_for_pages(process, target, 3)
    workers_of(process)[0].kill()
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "SIGKILL" in stderr
    assert "[worker-died]" in stderr
    done = run(tree, target)
    assert done.returncode == 0, done.stderr
    assert contents(target) == uninterrupted


def test_resume_after_ctrl_c(tree: Path, tmp_path: Path, uninterrupted: list[bytes]) -> None:
    target = tmp_path / "a.beton"
    process = start(tree, target)
    wait_for_pages(process, target, 3)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command resumes" in stderr
    assert run(tree, target).returncode == 0
    assert contents(target) == uninterrupted


@pytest.mark.nightly
def test_resume_after_kills_at_random_moments(tree: Path, tmp_path: Path, uninterrupted: list[bytes]) -> None:
    """Kills the writer or a worker at random moments, then lets a run complete."""
    target, rng, kills = tmp_path / "a.beton", np.random.default_rng(0), 0
    while kills < 8:
        process = start(tree, target)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.3, 1.3))
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = workers_of(process) if rng.random() < 0.3 else []
            (workers or [psutil.Process(process.pid)])[0].kill()
            kills += 1
        process.communicate(timeout=30)
        if target.exists():  # it completed before the kill
            assert contents(target) == uninterrupted
            for file in target.parent.glob(f"{target.name}*"):
                file.unlink()
    assert run(tree, target).returncode == 0
    assert contents(target) == uninterrupted
    check_no_other_files(target)


@pytest.fixture
def interrupted(tree: Path, tmp_path: Path) -> Path:
    """The target of a run that was killed after its fourth page."""
    target = tmp_path / "a.beton"
    process = start(tree, target)
    wait_for_pages(process, target, 4)
    process.kill()
    process.communicate(timeout=30)
    return target


def test_resume_discards_incomplete_records(tree: Path, interrupted: Path, uninterrupted: list[bytes]) -> None:
    """As after a power failure: a page was not written to disk, and a record only partly."""
    journal = journal_path(interrupted)
    journal.write_bytes(journal.read_bytes()[:-5])
    with partial_path(interrupted).open("r+b") as file:
        file.seek(3 * PAGE)
        file.write(bytes(4096))
    assert run(tree, interrupted).returncode == 0
    assert contents(interrupted) == uninterrupted


def test_another_job_does_not_resume_and_restart_discards(tree: Path, interrupted: Path) -> None:
    for words, what in (
        (["--max-resolution", "400"], "image policy"),
        (["--seed", "5"], "image policy, source or order of images"),
        (["--subset", "60"], "source or order of images"),
    ):
        done = run(tree, interrupted, *words)
        assert done.returncode == 1
        assert f"a different {what}." in done.stderr
        assert "[write-job-mismatch]" in done.stderr
        assert size_of(partial_path(interrupted)) > 4 * PAGE
    done = run(tree, interrupted, "--subset", "60", "--restart")
    assert done.returncode == 0, done.stderr
    assert len(BetonFile.open(interrupted)) in (58, 59, 60)


def test_resume_with_another_on_bad_image(tree: Path, interrupted: Path, tmp_path: Path) -> None:
    """Resumes unless a bad image is in the recovered pages."""
    done = run(tree, interrupted, "--on-bad-image", "fail")
    assert done.returncode == 1
    assert "[image-undecodable]" in done.stderr or "[write-job-mismatch]" in done.stderr
    assert partial_path(interrupted).exists()


def test_second_writer_of_a_file_is_refused(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.beton"
    process = start(tree, target)
    try:
        wait_for_pages(process, target, 1)
        process.send_signal(signal.SIGSTOP)  # so that it does not complete first
        done = run(tree, target)
        assert done.returncode == 1
        assert "[file-locked]" in done.stderr
    finally:
        process.kill()
        process.communicate(timeout=30)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 110 MB."""
    with mounted_tmpfs(tmp_path / "disk", megabytes=110) as disk:
        yield disk


def test_resume_after_the_disk_was_full(tree: Path, small_disk: Path, uninterrupted: list[bytes]) -> None:
    target = small_disk / "a.beton"
    process = start(tree, target)
    wait_for_pages(process, target, 2)
    filler = fill(small_disk)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the same command resumes. [disk-full]" in stderr
    done = run(tree, target)
    assert done.returncode == 1
    assert "[disk-full]" in done.stderr
    filler.unlink()
    done = run(tree, target)
    assert done.returncode == 0, done.stderr
    assert contents(target) == uninterrupted
    check_no_other_files(target)
