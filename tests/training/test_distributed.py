"""The processes of a run: taking their places, and leaving them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import free_port, run, torchrun

LEAVES_A_WORLD = """
from pathlib import Path
import torch
from rebar.training.distributed import join_world, sum_over_world, wrap_distributed

with join_world() as world:
    import torch._dynamo  # torch does so by itself in training, and brings modules that keep the group
    model = wrap_distributed(torch.nn.Linear(2, 2), world)
    model.itself = [model]
    model(torch.ones(1, 2)).sum().backward()
    assert sum_over_world(torch.ones(1), world).item() == 2
    del model
threads = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
print(f"threads: {[name for name in threads if 'gloo' in name]}", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of threads")
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    """One that is still busy when Python ends aborts the process: its exit status was that of a crash."""
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES_A_WORLD)
    shown = run(*torchrun(2, script), PYTHONPATH=str(Path(__file__).parents[2])).stdout
    assert shown.count("threads: []") == 2


WAITS = """
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
def test_waiting_takes_as_long_as_the_others_live(second: str, message: str, tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(WAITS)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    place["PYTHONPATH"] = str(Path(__file__).parents[2])
    first, other = (  # without torchrun, which would end the one that waits
        subprocess.Popen(
            [sys.executable, script, second],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    )
    said = first.communicate(timeout=120)[1]
    other.communicate(timeout=120)
    assert [first.returncode, other.returncode] == ([0, 0] if second == "late" else [1, 3]), said
    assert re.search(message, said), said
