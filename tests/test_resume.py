"""A run that is interrupted at any step and resumed is identical to an uninterrupted one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from rebar.training.checkpoint import read_checkpoint
from tests.conftest import REPOSITORY, Data, free_port, read_events, run, torchrun
from tests.training.metadata_service import metadata_server
from tests.training.s3_server import s3_server

Process = subprocess.Popen[str]
Args = list[str | Path]
TWO_RANKS = ["--training.batch_size", "8"]  # the same global batch as one rank with the recipe's 16


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoints/last.pt")["model"]


def assert_same_run(folder: Path, uninterrupted: Path) -> None:
    """Compare weights and logs bit for bit; every step must be logged once."""
    ours, theirs = weights(folder), weights(uninterrupted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for event, names in (("step", ("step", "train/loss", "train/lr")), ("epoch", ("epoch", "train/top1", "val/top1"))):
        logged = [[record[name] for name in names] for record in read_events(folder, event)]
        assert logged == [[record[name] for name in names] for record in read_events(uninterrupted, event)]


def interrupt(command: Args, folder: Path, at_step: int, how: Callable[[int], None], **environment: str) -> int:
    """Start a run, and call ``how`` with its process id once a step is logged. Returns its exit status."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 100
        while not (folder / "log.jsonl").exists() or not any(
            record["step"] >= at_step for record in read_events(folder, "step")
        ):
            assert process.poll() is None, "the run ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        how(process.pid)
        return process.wait(timeout=100)
    finally:
        process.kill()
        process.wait()


def send(number: signal.Signals) -> Callable[[int], None]:
    return lambda pid: os.kill(pid, number)


def kill_rank(rank: int) -> Callable[[int], None]:
    def kill(pid: int) -> None:
        for worker in psutil.Process(pid).children():
            if worker.environ().get("RANK") == str(rank):
                worker.kill()

    return kill


def status(folder: Path) -> tuple[str, str, int]:
    record = json.loads((folder / "status.json").read_text())
    return record["state"], record["reason"], record["exit_code"]


# ------------------------------------------------------------------ one rank


@pytest.mark.parametrize(
    ("number", "at_step"),
    [
        pytest.param(signal.SIGTERM, 7, id="SIGTERM"),
        pytest.param(signal.SIGINT, 0, id="SIGINT", marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 27, id="SIGUSR1", marks=pytest.mark.slow),
    ],
)
def test_resume_after_a_signal_is_identical(
    number: signal.Signals, at_step: int, data: Data, finished_run: Path, tmp_path: Path
) -> None:
    command = data.training_command(tmp_path / "run")
    assert interrupt(command, tmp_path / "run", at_step, send(number)) == 75
    assert status(tmp_path / "run") == ("interrupted", number.name, 75)
    assert read_checkpoint(tmp_path / "run/checkpoints/last.pt")["meter"]["steps"] > at_step % 20
    assert " of 20 steps of epoch " in run(*command).stdout
    assert_same_run(tmp_path / "run", finished_run)
    assert status(tmp_path / "run") == ("finished", "", 0)


@pytest.mark.slow
def test_resume_after_sigkill_within_an_epoch_is_identical(data: Data, finished_run: Path, tmp_path: Path) -> None:
    command = data.training_command(tmp_path / "run", "--every-steps", "4")
    assert interrupt(command, tmp_path / "run", 26, send(signal.SIGKILL)) == -signal.SIGKILL
    resumed = run(*command).stdout
    assert re.search("after [48] of 20 steps of epoch 2", resumed)
    assert_same_run(tmp_path / "run", finished_run)


def test_resume_file_then_sigkill_resumes_the_run_itself(data: Data, finished_run: Path, tmp_path: Path) -> None:
    file = finished_run / "checkpoints/last.pt"
    args = ["--resume", str(file), "--epochs", "3", "--every-steps", "4"]
    run(*data.training_command(tmp_path / "uninterrupted", *args))
    command = data.training_command(tmp_path / "run", *args)
    assert interrupt(command, tmp_path / "run", 46, send(signal.SIGKILL)) == -signal.SIGKILL
    resumed = run(*command).stdout
    assert f"started from {file} and resumes from its own last checkpoint" in resumed
    assert " steps of epoch 3" in resumed
    assert_same_run(tmp_path / "run", tmp_path / "uninterrupted")


@pytest.mark.slow
def test_every_minutes_saves_by_time(data: Data, tmp_path: Path) -> None:
    command = data.training_command(tmp_path, "--every-minutes", "0.005", "--max-steps", "12", "--keep-best", "0")
    run(*command)
    assert (tmp_path / "checkpoints/previous.pt").exists()  # saved more than once


@pytest.mark.slow
def test_resume_after_an_interrupted_evaluation_is_identical(data: Data, finished_run: Path, tmp_path: Path) -> None:
    with metadata_server() as server:  # polled once a minute: the first poll gets the notice
        args = data.training_command(tmp_path / "run", "--spot-notice", "on", "--spot-poll-seconds", "60")
        stopped = run(*args, expect=75, AWS_EC2_METADATA_SERVICE_ENDPOINT=server.url)
    assert "interrupted by EC2's spot interruption notice" in stopped.stdout
    assert status(tmp_path / "run")[0] == "interrupted"
    last = tmp_path / "run/checkpoints/last.pt"
    assert read_checkpoint(last)["epoch"] == 0
    # Resumed, and interrupted again at the first batch of the evaluation.
    code = f"""if True:
        import sys, train_imagenet
        from rebar.cli import run_command
        from rebar.training.stopping import StopReason
        from rebar.training.run import Run
        interruptible = Run.interruptible
        def interrupted(self, batches):
            self.control.request.set(StopReason.SIGTERM)
            return interruptible(self, batches)
        Run.interruptible = interrupted
        run_command(train_imagenet.main, {[str(arg) for arg in args[1:]]!r})
    """
    run("-c", code, expect=75, AWS_EC2_METADATA_SERVICE_ENDPOINT="")
    assert read_checkpoint(last)["meter"]["steps"] == 20
    run(*data.training_command(tmp_path / "run"))
    assert_same_run(tmp_path / "run", finished_run)


# ------------------------------------------------------------------ several ranks


@pytest.fixture(scope="module")
def two_ranks(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on two ranks."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    run(*torchrun(2, *data.training_command(folder, *TWO_RANKS)))
    return folder


@pytest.mark.parametrize(
    ("rank", "args"),
    [
        (0, []),
        pytest.param(1, [], marks=pytest.mark.slow),
        pytest.param(1, ["--resume", "none", "--overwrite"], id="overwriting_an_earlier_run"),
    ],
)
def test_torchrun_restart_after_a_killed_rank_is_identical(
    rank: int, args: list[str], data: Data, finished_run: Path, two_ranks: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    if args:
        shutil.copytree(finished_run, folder)
        (folder / "log.jsonl").unlink()
    command = torchrun(2, *data.training_command(folder, *TWO_RANKS, "--every-steps", "5", *args))
    command.insert(2, "--max-restarts=2")
    assert interrupt(command, folder, 12, kill_rank(rank)) == 0
    assert len(read_events(folder, "start")) == 2
    assert_same_run(folder, two_ranks)


@pytest.mark.slow
def test_all_ranks_stop_at_the_same_step(data: Data, two_ranks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = torchrun(2, *data.training_command(folder, *TWO_RANKS))
    interrupt(command, folder, 24, send(signal.SIGTERM))
    assert status(folder) == ("interrupted", "SIGTERM", 75)
    assert " steps of epoch 2" in run(*command).stdout
    assert_same_run(folder, two_ranks)


# BatchNorm depends on the number of ranks, because each rank has its own statistics.
GROUP_NORM = """if True:
    import functools, sys, train_imagenet
    from torch import nn
    from rebar.cli import run_command
    from rebar.models import build
    from rebar.models.torchvision_compat import import_torchvision
    def build_model(arch, *, num_classes, **_):
        norm = functools.partial(nn.GroupNorm, 8)
        return import_torchvision().models.resnet18(num_classes=num_classes, norm_layer=norm)
    build.build_model = build_model
    run_command(train_imagenet.main)
"""


@pytest.mark.slow
def test_resume_with_another_number_of_ranks(data: Data, tmp_path: Path) -> None:
    script = tmp_path / "group_norm.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n{GROUP_NORM}")

    def command(folder: str, *args: str) -> Args:
        return [script, *data.training_command(tmp_path / folder, "--lr", "0.01", "--epochs", "1", *args)[1:]]

    assert re.search(r"time left: about \d+ s for 1 epoch, without evaluation", run(*command("one")).stdout)
    run(*command("changing", "--max-steps", "8"))
    four = run(*torchrun(4, *command("changing", "--training.batch_size", "4", "--max-steps", "13")))
    assert "after 8 of " in four.stdout
    one = run(*command("changing"))
    assert "after 13 of " in one.stdout
    assert "warning: resuming with" not in four.stderr + one.stderr
    ours, theirs = weights(tmp_path / "changing"), weights(tmp_path / "one")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    logged, uninterrupted = (read_events(tmp_path / folder, "step") for folder in ("changing", "one"))
    assert [record["step"] for record in logged] == [record["step"] for record in uninterrupted] == list(range(20))
    for step in (*range(8), *range(13, 20)):  # of four ranks, the first one's loss is logged
        assert logged[step]["train/loss"] == pytest.approx(uninterrupted[step]["train/loss"], rel=1e-4)
    means = [read_events(tmp_path / folder, "epoch")[-1]["train/loss"] for folder in ("changing", "one")]
    assert means[0] == pytest.approx(means[1], rel=1e-4)


# ------------------------------------------------------------------ several nodes


@contextmanager
def nodes(command: Callable[[int], Args], environments: Sequence[dict[str, str]]) -> Iterator[list[Process]]:
    """Start one launcher per node, all on this machine; ``command(node)`` is the node's command."""
    rendezvous = [f"--nnodes={len(environments)}", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=test"]
    rendezvous.append(f"--rdzv_endpoint=127.0.0.1:{free_port()}")
    launchers = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *rendezvous, *map(str, command(node))],
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node, environment in enumerate(environments)
    ]
    try:
        yield launchers
    finally:
        for launcher in launchers:
            launcher.kill()  # its worker ends with it
            launcher.wait()


def finish(launchers: Sequence[Process], expect: int) -> str:
    """Wait for the launchers, and check their exit status. Returns their output."""
    printed = [launcher.communicate(timeout=200)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [expect] * len(launchers), "\n".join(printed)
    return "\n".join(printed)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["one_folder", "a_folder_each_and_s3"])
def test_spot_notice_on_one_node_stops_all_ranks_at_the_same_step(
    shared: bool, data: Data, two_ranks: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / "run"] * 2 if shared else [tmp_path / "a/run", tmp_path / "b/run"]
    with ExitStack() as stack:
        s3 = None if shared else stack.enter_context(s3_server())
        upload = [] if s3 is None else ["--upload", "s3://results"]
        variables = {} if s3 is None else s3.variables
        metadata = stack.enter_context(metadata_server())
        metadata.notice_after = 10**9

        def command(node: int) -> Args:
            return data.training_command(folders[node], *TWO_RANKS, *upload, "--spot-poll-seconds", "0.1")

        noticed = {**variables, "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url, "AWS_EC2_METADATA_DISABLED": "false"}
        with nodes(command, [variables, noticed]) as launchers:
            deadline = time.monotonic() + 200
            while not any(steps_logged(folder) > 23 for folder in folders):
                assert all(launcher.poll() is None for launcher in launchers)
                assert time.monotonic() < deadline
                time.sleep(0.02)
            metadata.notice_after = 0
            finish(launchers, expect=1)  # torchrun turns a worker's 75 into 1
        (folder,) = {folder for folder in folders if (folder / "status.json").exists()}
        assert status(folder) == ("interrupted", "EC2's spot interruption notice", 75)
        at = read_checkpoint(folder / "checkpoints/last.pt")["meter"]["steps"]
        assert steps_logged(folder) == 20 + at  # no rank went beyond the checkpoint
        assert {path for each in folders for path in each.glob("checkpoints/last.pt")} == {
            folder / "checkpoints/last.pt"
        }

        with nodes(command, [variables, variables]) as launchers:
            assert f"after {at} of 20 steps of epoch 2" in finish(launchers, expect=0)
        assert_same_run(finished(folders), two_ranks)


def test_nodes_with_different_checkpoints_do_not_start(data: Data, finished_run: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a/run", tmp_path / "b/run"]
    shutil.copytree(finished_run, folders[1])

    def command(node: int) -> Args:
        return data.training_command(folders[node], *TWO_RANKS)

    with nodes(command, [{}, {}]) as launchers:
        printed = finish(launchers, expect=1)
    assert re.search(r"rank 0 at step (0, rank 1 at step [^0]|[^0]\d*, rank 1 at step 0)", printed)
    assert "[checkpoint-differs-between-nodes]" in printed


def steps_logged(folder: Path) -> int:
    return len(read_events(folder, "step")) if (folder / "log.jsonl").exists() else 0


def finished(folders: Sequence[Path]) -> Path:
    """Return the folder of rank 0, which may be on another node than before."""
    (found,) = {f for f in folders if (f / "status.json").exists() and status(f)[0] == "finished"}
    return found


def test_resume_after_damage_keeps_the_good_and_the_damaged_checkpoint(
    data: Data, finished_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    last, previous = folder / "checkpoints/last.pt", folder / "checkpoints/previous.pt"
    damaged = last.read_bytes()[:-100]
    last.write_bytes(damaged)
    epoch = read_checkpoint(previous)["epoch"]

    done = run(*data.training_command(folder, "--epochs", "3", "--max-steps", "1", "--log-level", "0"))
    assert "previous.pt" in done.stderr
    assert read_checkpoint(last)["epoch"] >= epoch
    assert read_checkpoint(previous)["epoch"] == epoch
    assert last.with_name("last.pt.damaged").read_bytes() == damaged


def test_resume_without_last_pt_continues_from_the_newest_checkpoint(
    data: Data, finished_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (folder / "checkpoints/last.pt").unlink()
    before = {path.name for path in folder.rglob("*.pt")}
    records = len(read_events(folder, "step"))

    done = run(*data.training_command(folder, "--epochs", "3", "--max-steps", "1", "--log-level", "0"))
    assert "last.pt is missing" in done.stderr
    assert {path.name for path in folder.rglob("*.pt")} >= before
    assert len(read_events(folder, "step")) >= records // 2  # the epochs before the checkpoint stay in the log
