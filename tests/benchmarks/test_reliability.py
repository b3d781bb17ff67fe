"""The fuzzers and kill loops of benchmarks/reliability.py: one case of each always, and new cases every night."""

import datetime
from pathlib import Path

import pytest

from tests.conftest import run

NIGHTLY_SECONDS = 120
LOOPS = ["jpeg", "beton", "sidecar", "kill-writer", "kill-training"]


def run_loop(loop: str, faults: Path, *, seconds: float, seed: int) -> str:
    """Run a loop, which exits with status 1 if there are faults. Return what it prints."""
    settings: list[str | Path] = ["--seconds", str(seconds), "--seed", str(seed), "--faults", faults]
    return run("benchmarks/reliability.py", loop, *settings).stdout


@pytest.mark.parametrize("loop", ["jpeg", "beton", "sidecar"])
def test_fuzzer_finds_no_fault(loop: str, tmp_path: Path) -> None:
    assert " 0 faults" in run_loop(loop, tmp_path / "faults", seconds=1, seed=0)


@pytest.mark.nightly
@pytest.mark.parametrize("loop", LOOPS)
def test_loop_finds_no_fault_in_new_cases(loop: str, tmp_path: Path) -> None:
    seed = datetime.date.today().toordinal()
    assert " 0 faults" in run_loop(loop, tmp_path / "faults", seconds=NIGHTLY_SECONDS, seed=seed)
