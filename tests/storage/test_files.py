"""File locks between processes, and copies in blocks that resume, are verified, and survive damaged journals."""

import errno
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from rebar.errors import RebarError
from rebar.storage.files import copy_blocks, file_lock
from tests.conftest import REPOSITORY

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


CONTENT = bytes(range(100))
BLOCK = 30


class Copy:
    """Copies CONTENT to ``target``, and fails at the blocks ``failing``."""

    def __init__(self, target: Path, *, version: Any = 1, failing: tuple[int, ...] = (), damaged: bool = False) -> None:
        self.copied: list[int] = []
        self._failing, self._damaged = failing, damaged
        sizes = [len(CONTENT[at : at + BLOCK]) for at in range(0, len(CONTENT), BLOCK)]
        try:
            copy_blocks(target, version, sizes, self._copy, self._verify, threads=1, description="", progress=False)
            self.error = None
        except (OSError, RebarError) as error:
            self.error = error

    def _copy(self, file: IO[bytes], block: int, _: threading.Event) -> int:
        if block in self._failing:
            raise OSError("the source is gone")
        file.seek(block * BLOCK)
        file.write(CONTENT[block * BLOCK : (block + 1) * BLOCK])
        self.copied.append(block)
        return block + 10

    def _verify(self, path: Path, values: Mapping[int, int]) -> None:
        assert values == {0: 10, 1: 11, 2: 12, 3: 13}
        if self._damaged or path.read_bytes() != CONTENT:
            raise RebarError("damaged", code="staging-verify-failed")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".a.lock"}


def test_interrupted_copy_resumes_after_the_complete_blocks(tmp_path: Path) -> None:
    assert isinstance(Copy(tmp_path / "a", failing=(2,)).error, OSError)
    assert files(tmp_path) == {".a.part", ".a.parts"}
    resumed = Copy(tmp_path / "a")
    assert resumed.error is None
    assert resumed.copied == [2, 3]
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert files(tmp_path) == {"a"}


def test_another_version_is_copied_from_the_start(tmp_path: Path) -> None:
    Copy(tmp_path / "a", failing=(2,))
    assert Copy(tmp_path / "a", version=2).copied == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[1]\n", b"5\n", b"[[], 1]\n", b'{"a": 1\n'])
def test_copy_blocks_ignores_a_damaged_journal(damage: bytes, tmp_path: Path) -> None:
    Copy(tmp_path / "a", failing=(2,))
    with (tmp_path / ".a.parts").open("ab") as journal:
        journal.write(damage)
    repeated = Copy(tmp_path / "a")
    assert repeated.error is None
    assert repeated.copied == [0, 1, 2, 3]


def test_incomplete_last_line_of_the_journal_is_ignored(tmp_path: Path) -> None:
    Copy(tmp_path / "a", failing=(2,))
    with (tmp_path / ".a.parts").open("ab") as journal:
        journal.write(b"[2, 1")
    assert Copy(tmp_path / "a").copied == [2, 3]


def test_file_that_fails_its_verification_is_removed(tmp_path: Path) -> None:
    failed = Copy(tmp_path / "a", damaged=True).error
    assert isinstance(failed, RebarError)
    assert failed.code == "staging-verify-failed"
    assert files(tmp_path) == set()
    assert Copy(tmp_path / "a").copied == [0, 1, 2, 3]
