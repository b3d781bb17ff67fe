"""Small files and writes on a full disk, and file locks between processes."""

import errno
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.storage.files import atomic_write, file_lock, write_at, write_small_file
from tests.conftest import REPOSITORY, fill, mounted_tmpfs

HOLD = """
import sys, time
from pathlib import Path
from rebar.storage.files import file_lock
with file_lock(Path(sys.argv[1]), "locked"):
    print("locked", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def locked_by_another_process(path: Path, seconds: float = 60.0) -> "Iterator[subprocess.Popen[str]]":
    words = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    process = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_write_at_raises_unless_everything_is_written(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "disk", megabytes=1) as disk, (disk / "file").open("wb", buffering=0) as file:
        assert file.write(bytes(2 << 20)) < 2 << 20  # of the operating system, without an error
        file.truncate(0)
        write_at(file, b"at the start", 0)
        with pytest.raises(OSError, match="No space left"):
            write_at(file, bytes(2 << 20), 4096)
        assert (disk / "file").read_bytes().startswith(b"at the start")


def test_atomic_write_to_a_read_only_file_system_is_one_error(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "disk", megabytes=1) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(RebarError) as error, atomic_write(disk / "report.html") as (file,):
            file.write(b"content")
        assert error.value.code == "file-not-writable"


def test_write_small_file_on_a_full_disk_replaces_all_or_nothing(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "disk", megabytes=1) as disk:
        path = disk / "status.json"
        write_small_file(path, b"short")
        fill(disk)
        write_small_file(path, b"a longer text")
        assert path.read_bytes() == b"a longer text"
        with pytest.raises(RebarError) as error:
            write_small_file(path, bytes(5000))
        assert error.value.code == "disk-full"
        assert path.read_bytes() == b"a longer text"


def test_file_lock_refuses_a_second_process_until_the_first_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked_by_another_process(path) as process:
        with pytest.raises(RebarError, match="wait for it") as refused, file_lock(path, "wait for it"):
            pass
        assert refused.value.code == "file-locked"
        process.kill()
        process.wait()
        with file_lock(path, "wait for it"):
            assert path.exists()
    assert not path.exists()


def test_file_lock_waits_within_its_timeout(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked_by_another_process(path, 0.5), file_lock(path, "not reached", timeout=-1):
        assert path.exists()


def test_file_lock_below_a_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RebarError) as refused, file_lock(tmp_path / "file" / "lock", ""):
        pass
    assert refused.value.code == "file-not-writable"


def test_file_lock_without_support_is_skipped_unless_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with file_lock(tmp_path / "lock", ""):
        pass
    with pytest.raises(RebarError) as refused, file_lock(tmp_path / "lock", "", required=True):
        pass
    assert refused.value.code == "file-locks-unsupported"
