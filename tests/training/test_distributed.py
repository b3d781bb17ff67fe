"""Process groups: joining, waiting and leaving."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.training.distributed import join_world
from tests.processes import free_port, start_ranks


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "4"},
        {"WORLD_SIZE": "4", "RANK": "1"},
        {"WORLD_SIZE": "4", "RANK": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        {"RANK": "1"},
        {"WORLD_SIZE": "x"},
        {"RANK": "-1"},
        {"LOCAL_RANK": "a"},
        {"LOCAL_WORLD_SIZE": "1.5"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "http"},
    ],
    ids=str,
)
def test_join_world_reports_contradictory_environment(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RebarError) as caught, join_world():
        pass
    assert caught.value.code == "distributed-environment"


def test_join_world_accepts_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": ""}.items():
        monkeypatch.setenv(name, value)
    with join_world() as world:
        assert (world.rank, world.size) == (0, 1)


WAIT_FOR_OTHERS = """
from rebar.training import distributed
distributed._NOTICE_SECONDS = 0.3
with distributed.join_world() as world:
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "message"),
    [(0, "rank 1 of 2 "), pytest.param(1, "rank 0 at 127.0.0.1", marks=pytest.mark.nightly)],
)
def test_join_world_names_the_ranks_that_it_waits_for(first: int, message: str) -> None:
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    variables |= {"PYTHONPATH": str(Path(__file__).parents[2])}

    def start(rank: int) -> subprocess.Popen[str]:
        environment = {**os.environ, **variables, "RANK": str(rank)}
        return subprocess.Popen(
            [sys.executable, "-c", WAIT_FOR_OTHERS], env=environment, stderr=subprocess.PIPE, text=True
        )

    waiting = start(first)
    assert waiting.stderr is not None
    assert message in waiting.stderr.readline()
    other = start(1 - first)
    other.communicate(timeout=60)
    waiting.communicate(timeout=60)
    assert [waiting.returncode, other.returncode] == [0, 0]


LEAVE_WORLD = """
from pathlib import Path
import torch
from rebar.training.distributed import join_world, sum_over_world, wrap_distributed

with join_world() as world:
    import torch._dynamo  # training imports it, and with it modules that reference the group
    model = wrap_distributed(torch.nn.Linear(2, 2), world)
    model.cycle = [model]
    model(torch.ones(1, 2)).sum().backward()
    assert sum_over_world(torch.ones(1), world).item() == 2
    del model
threads = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
print(f"threads: {[name for name in threads if 'gloo' in name]}", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_join_world_ends_all_gloo_threads(tmp_path: Path) -> None:
    """A thread that still runs at exit aborts the process with a failure status."""
    script = tmp_path / "leave_world.py"
    script.write_text(LEAVE_WORLD)
    ranks = start_ranks(2, [script])
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output
    assert all("threads: []" in rank.output for rank in ranks)


WAIT_FOR_ALL = """
import os, sys, time
from datetime import timedelta
from rebar.training import distributed
from rebar.training.distributed import join_world, wait_for_all

distributed._TIMEOUT = timedelta(seconds=15)
with join_world() as world:
    if not world.is_main and sys.argv[1] == "dead":
        os._exit(3)
    if not world.is_main:
        time.sleep(18)
    wait_for_all(world)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "message"),
    [pytest.param("late", "", marks=pytest.mark.nightly), ("dead", "by peer|roken pipe")],
)
def test_wait_for_all_waits_for_slow_ranks_and_fails_if_one_dies(second: str, message: str, tmp_path: Path) -> None:
    script = tmp_path / "wait_for_all.py"
    script.write_text(WAIT_FOR_ALL)
    rendezvous = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    rendezvous["PYTHONPATH"] = str(Path(__file__).parents[2])
    first, other = (  # without torchrun, which would end the waiting rank
        subprocess.Popen(
            [sys.executable, script, second],
            env={**os.environ, **rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    )
    stderr = first.communicate(timeout=120)[1]
    other.communicate(timeout=120)
    assert [first.returncode, other.returncode] == ([0, 0] if second == "late" else [1, 3]), stderr
    assert re.search(message, stderr), stderr
