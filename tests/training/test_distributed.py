"""Process groups: joining, waiting and leaving."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import free_port, run, torchrun

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
    output = run(*torchrun(2, script), PYTHONPATH=str(Path(__file__).parents[2])).stdout
    assert output.count("threads: []") == 2


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
@pytest.mark.parametrize(("second", "message"), [("late", ""), ("dead", "by peer|roken pipe")])
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
