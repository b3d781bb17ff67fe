"""Journal: complete records survive, damaged ones end the journal."""

from pathlib import Path

import pytest

from rebar.beton.partial_file import Journal

HEADER = {"job": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.resume(HEADER, 0)
        for record in (b"one", b"two", b"three"):
            journal.append(record)
    return path


def records_of(path: Path) -> list[bytes]:
    with Journal(path) as journal:
        header, _, records = journal.read()
        assert header == HEADER
        return [record for record, _ in records]


def test_journal_returns_all_records(path: Path) -> None:
    assert records_of(path) == [b"one", b"two", b"three"]


def test_new_journal_has_no_header(tmp_path: Path) -> None:
    with Journal(tmp_path / "new") as journal:
        header, end, records = journal.read()
        assert (header, end, list(records)) == (None, 0, [])


@pytest.mark.parametrize("removed", [1, 5, 12])
def test_journal_discards_a_truncated_record(path: Path, removed: int) -> None:
    path.write_bytes(path.read_bytes()[:-removed])
    assert records_of(path) == [b"one", b"two"]


def test_journal_discards_everything_after_a_damaged_record(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"two", b"tw0"))
    assert records_of(path) == [b"one"]


def test_journal_resume_appends_after_a_record(path: Path) -> None:
    with Journal(path) as journal:
        _, _, records = journal.read()
        _, end = next(records)
        journal.resume(HEADER, end)
        journal.append(b"four")
    assert records_of(path) == [b"one", b"four"]
