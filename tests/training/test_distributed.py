"""The processes of a run: taking their places, and leaving them."""

import sys
from pathlib import Path

import pytest

from tests.conftest import run, torchrun

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

distributed._TIMEOUT = timedelta(seconds=2)
with join_world() as world:
    if not world.is_main:
        wait_for_all(world)
        print("the first process has come", flush=True)
    elif sys.argv[1] == "late":
        time.sleep(5)
        wait_for_all(world)
    else:
        os._exit(3)
"""


@pytest.mark.parametrize(
    ("first", "expect", "message"),
    [("late", 0, "the first process has come"), ("dead", 1, "onnection closed by peer")],
)
def test_waiting_takes_as_long_as_the_others_live(first: str, expect: int, message: str, tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(WAITS)
    ended = run(*torchrun(2, script, first), expect=expect, PYTHONPATH=str(Path(__file__).parents[2]))
    assert message in ended.stdout + ended.stderr
