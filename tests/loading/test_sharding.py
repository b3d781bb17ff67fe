"""Whose share, and how many threads."""

import os

import pytest

from rebar.errors import RebarError
from rebar.loading.order import rank_and_world_size, threads_per_process


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_alone_unless_told_otherwise() -> None:
    assert rank_and_world_size(False, None, None) == (0, 1)
    assert rank_and_world_size(False, 1, 2) == (1, 2)
    assert rank_and_world_size(True, 1, 2) == (1, 2)


def test_torchruns_environment_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert rank_and_world_size(True, None, None) == (3, 4)
    assert rank_and_world_size(False, None, None) == (0, 1)


def test_distributed_without_anybody_is_explained() -> None:
    with pytest.raises(RebarError, match="start with torchrun"):
        rank_and_world_size(True, None, None)


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2), (2, 2), (-1, 2), (0, 0)])
def test_half_an_answer_is_refused(rank: int | None, world_size: int | None) -> None:
    with pytest.raises(RebarError, match="give both"):
        rank_and_world_size(False, rank, world_size)


def test_threads_are_as_asked_or_the_machines_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(24)))
    assert threads_per_process(100) == 100
    assert threads_per_process(-1) == threads_per_process(0) == 24
    assert threads_per_process(0, 8) == 3
    assert threads_per_process(0, 100) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert threads_per_process(-1) == 6
