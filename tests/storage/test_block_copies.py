"""Copies in blocks resume, are verified, and survive damaged journals."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pytest

from rebar.errors import RebarError
from rebar.storage.block_copies import copy_blocks

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
