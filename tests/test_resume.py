"""A run that is interrupted at any step and resumed is identical to an uninterrupted one."""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed.run

from rebar.training.checkpoint import read_checkpoint
from rebar.training.run import Run
from rebar.training.stopping import StopReason
from tests.conftest import REPOSITORY, TWO_RANKS, Data, read_events, train_here
from tests.processes import Args, Process, free_port, interrupt, send, start, start_ranks, wait_for_step
from tests.training.metadata_service import metadata_server
from tests.training.s3_server import s3_server

TORCHRUN = torch.distributed.run.__file__
pytestmark = pytest.mark.usefixtures("without_plots")


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


def status(folder: Path) -> tuple[str, str, int]:
    record = json.loads((folder / "status.json").read_text())
    return record["state"], record["reason"], record["exit_code"]


def finish(processes: list[Process], expect: int = 0) -> str:
    """Wait for all processes, and check their exit status. Returns their output."""
    statuses = [process.wait() for process in processes]
    printed = "\n".join(process.output for process in processes)
    assert statuses == [expect] * len(processes), printed
    return printed


# ------------------------------------------------------------------ one rank


@pytest.mark.parametrize(
    ("number", "at_step"),
    [
        pytest.param(signal.SIGTERM, 7, id="SIGTERM"),
        pytest.param(signal.SIGINT, 0, id="SIGINT", marks=pytest.mark.nightly),
        pytest.param(signal.SIGUSR1, 22, id="SIGUSR1", marks=pytest.mark.nightly),
    ],
)
def test_resume_after_a_signal_is_identical(
    number: signal.Signals,
    at_step: int,
    data: Data,
    finished_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = data.training_command(tmp_path / "run")
    assert interrupt(command, tmp_path / "run", at_step, send(number)) == 75
    assert status(tmp_path / "run") == ("interrupted", number.name, 75)
    assert read_checkpoint(tmp_path / "run/checkpoints/last.pt")["meter"]["steps"] > at_step % 20
    train_here(*command)
    assert " of 20 steps of epoch " in capsys.readouterr().out
    assert_same_run(tmp_path / "run", finished_run)
    assert status(tmp_path / "run") == ("finished", "", 0)


def test_resume_after_sigkill_within_an_epoch_is_identical(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = data.training_command(tmp_path / "run", "--every-steps", "4")
    assert interrupt(command, tmp_path / "run", 25, send(signal.SIGKILL)) == -signal.SIGKILL
    train_here(*command)
    assert re.search("after (4|8|12|16) of 20 steps of epoch 2", capsys.readouterr().out)
    assert_same_run(tmp_path / "run", finished_run)


def test_resume_file_then_sigkill_resumes_the_run_itself(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = finished_run / "checkpoints/last.pt"
    args = ["--resume", str(file), "--epochs", "3", "--every-steps", "4"]
    train_here(*data.training_command(tmp_path / "uninterrupted", *args))
    command = data.training_command(tmp_path / "run", *args)
    assert interrupt(command, tmp_path / "run", 45, send(signal.SIGKILL)) == -signal.SIGKILL
    train_here(*command)
    resumed = capsys.readouterr().out
    assert f"started from {file} and resumes from its own last checkpoint" in resumed
    assert " steps of epoch 3" in resumed
    assert_same_run(tmp_path / "run", tmp_path / "uninterrupted")


def test_checkpoint_every_minutes_saves_by_time(data: Data, tmp_path: Path) -> None:
    train_here(*data.training_command(tmp_path, "--every-minutes", "1e-9", "--max-steps", "3", "--keep-best", "0"))
    assert (tmp_path / "checkpoints/previous.pt").exists()  # saved more than once


def test_resume_after_an_interrupted_evaluation_is_identical(
    data: Data, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = data.training_command(tmp_path)
    interruptible = Run.interruptible

    def interrupted(run: Run, batches: Any) -> Any:  # a signal arrives before the first batch of the evaluation
        assert run.control.request is not None
        run.control.request.set(StopReason.SIGTERM)
        return interruptible(run, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "interruptible", interrupted)
        with pytest.raises(SystemExit) as exited:
            train_here(*command)
    assert exited.value.code == 75
    assert status(tmp_path)[0] == "interrupted"
    assert read_checkpoint(tmp_path / "checkpoints/last.pt")["meter"]["steps"] == 20
    train_here(*command)
    assert_same_run(tmp_path, finished_run)


# ------------------------------------------------------------------ several ranks


def kill_rank(rank: int) -> Callable[[int], None]:
    def kill(launcher: int) -> None:
        for worker in psutil.Process(launcher).children():
            if worker.environ().get("RANK") == str(rank):
                worker.kill()

    return kill


@pytest.mark.parametrize(
    ("rank", "args"),
    [
        pytest.param(0, ["--resume", "none", "--overwrite"], id="overwriting_an_earlier_run"),
        pytest.param(1, [], marks=pytest.mark.nightly),
    ],
)
def test_torchrun_restart_after_a_killed_rank_is_identical(
    rank: int, args: list[str], data: Data, finished_run: Path, two_ranks: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    if args:
        shutil.copytree(finished_run, folder)
        (folder / "log.jsonl").unlink()
    launcher = [TORCHRUN, "--standalone", "--nproc_per_node=2", "--max-restarts=2"]
    command = [*launcher, *data.training_command(folder, *TWO_RANKS, "--every-steps", "5", *args)]
    assert interrupt(command, folder, 12, kill_rank(rank)) == 0
    assert len(read_events(folder, "start")) == 2
    assert_same_run(folder, two_ranks)


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_resume_after_a_signal_to_torchrun_is_identical(
    number: signal.Signals, data: Data, two_ranks: Path, tmp_path: Path
) -> None:
    command = [TORCHRUN, "--standalone", "--nproc_per_node=2", *data.training_command(tmp_path, *TWO_RANKS)]
    interrupt(command, tmp_path, 22, send(number))  # the ranks of a killed torchrun get SIGTERM from Linux
    while status(tmp_path)[0] == "running":
        time.sleep(0.1)
    assert status(tmp_path) == ("interrupted", "SIGTERM", 75)
    assert " steps of epoch 2" in finish(start_ranks(2, data.training_command(tmp_path, *TWO_RANKS)))
    assert_same_run(tmp_path, two_ranks)


def test_all_ranks_stop_at_the_same_step(data: Data, two_ranks: Path, tmp_path: Path) -> None:
    command = data.training_command(tmp_path, *TWO_RANKS)
    ranks = start_ranks(2, command)
    wait_for_step(tmp_path, 22, ranks)
    send(signal.SIGTERM)(ranks[1].pid)
    finish(ranks, expect=75)
    assert status(tmp_path) == ("interrupted", "SIGTERM", 75)
    assert " steps of epoch 2" in finish(start_ranks(2, command))
    assert_same_run(tmp_path, two_ranks)


# BatchNorm depends on the number of ranks, because each rank has its own statistics.
GROUP_NORM = """
import sys
sys.path.insert(0, {repository!r})
import train_imagenet
from torch import nn
from rebar.models import build
original = build.build_model
def build_model(*args, **options):
    model = original(*args, **options)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.GroupNorm(8, module.num_features))
    return model
build.build_model = build_model
train_imagenet.command()
"""


def test_resume_with_another_number_of_ranks(data: Data, tmp_path: Path) -> None:
    script = tmp_path / "group_norm.py"
    script.write_text(GROUP_NORM.format(repository=str(REPOSITORY)))

    def command(folder: str, *args: str) -> Args:
        return [script, *data.training_command(tmp_path / folder, "--lr", "0.001", "--epochs", "1", *args)[1:]]

    finish([start(command("one"))])
    finish([start(command("changing", "--max-steps", "8"))])
    two = finish(start_ranks(2, command("changing", "--training.batch_size", "8", "--max-steps", "13")))
    assert "after 8 of " in two
    one = finish([start(command("changing"))])
    assert "after 13 of " in one
    assert "warning: resuming with" not in two + one
    ours, theirs = weights(tmp_path / "changing"), weights(tmp_path / "one")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    logged, uninterrupted = (read_events(tmp_path / folder, "step") for folder in ("changing", "one"))
    assert [record["step"] for record in logged] == [record["step"] for record in uninterrupted] == list(range(20))
    for step in (*range(8), *range(13, 20)):  # of two ranks, the first one's loss is logged
        assert logged[step]["train/loss"] == pytest.approx(uninterrupted[step]["train/loss"], rel=1e-4)
    means = [read_events(tmp_path / folder, "epoch")[-1]["train/loss"] for folder in ("changing", "one")]
    assert means[0] == pytest.approx(means[1], rel=1e-4)


# ------------------------------------------------------------------ several nodes


def start_nodes(command: Callable[[int], Args], *environments: dict[str, str], first: int = 0) -> list[Process]:
    """Start one rank per node, all on this machine. ``command(node)`` is a node's command, ``first`` has rank 0."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    sizes = {"WORLD_SIZE": str(len(environments)), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    ranks = [{"RANK": str((node - first) % len(environments))} for node in range(len(environments))]
    return [
        start(command(node), **address, **sizes, **ranks[node], **environment)
        for node, environment in enumerate(environments)
    ]


def launch_nodes(command: Callable[[int], Args], *environments: dict[str, str], first: int = 0) -> list[Process]:
    """Start one torchrun per node, all on this machine. They choose the node with rank 0."""
    rendezvous = [f"--nnodes={len(environments)}", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=test"]
    launcher = [TORCHRUN, *rendezvous, f"--rdzv_endpoint=127.0.0.1:{free_port()}"]
    return [start([*launcher, *command(node)], **environment) for node, environment in enumerate(environments)]


@pytest.mark.parametrize(
    ("launch", "shared"),
    [
        pytest.param(start_nodes, True, id="one_folder"),
        pytest.param(start_nodes, False, id="a_folder_each_and_s3", marks=pytest.mark.nightly),
        pytest.param(launch_nodes, False, id="torchrun", marks=pytest.mark.nightly),
    ],
)
def test_spot_notice_on_one_node_stops_all_ranks_at_the_same_step(
    launch: Callable[..., list[Process]], shared: bool, data: Data, two_ranks: Path, tmp_path: Path
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
        nodes = launch(command, variables, noticed)
        folder = wait_for_any(folders, 22, nodes)
        metadata.notice_after = 0
        finish(nodes, expect=1 if launch is launch_nodes else 75)  # torchrun turns a worker's 75 into 1
        assert status(folder) == ("interrupted", "EC2's spot interruption notice", 75)
        at = read_checkpoint(folder / "checkpoints/last.pt")["meter"]["steps"]
        assert len(read_events(folder, "step")) == 20 + at  # no rank went beyond the checkpoint
        assert {path for each in folders for path in each.glob("checkpoints/last.pt")} == {
            folder / "checkpoints/last.pt"
        }

        assert f"after {at} of 20 steps of epoch 2" in finish(launch(command, variables, variables, first=1))
        (complete,) = {f for f in folders if (f / "status.json").exists() and status(f)[0] == "finished"}
        assert_same_run(complete, two_ranks)


def wait_for_any(folders: list[Path], step: int, nodes: list[Process]) -> Path:
    """Wait until one of the folders has a log, and in it the step. Returns the folder."""
    while not (found := [folder for folder in folders if (folder / "log.jsonl").exists()]):
        assert all(node.poll() is None for node in nodes), "\n".join(node.output for node in nodes)
        time.sleep(0.02)
    wait_for_step(found[0], step, nodes)
    return found[0]


def test_nodes_with_different_checkpoints_do_not_start(data: Data, finished_run: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a/run", tmp_path / "b/run"]
    shutil.copytree(finished_run, folders[1])
    printed = finish(start_nodes(lambda node: data.training_command(folders[node], *TWO_RANKS), {}, {}), expect=1)
    assert "rank 0 at step 0, rank 1 at step 40" in printed
    assert "[checkpoint-differs-between-nodes]" in printed


# ------------------------------------------------------------------ damaged and missing checkpoints


def test_resume_after_damage_keeps_the_good_and_the_damaged_checkpoint(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    last, previous = folder / "checkpoints/last.pt", folder / "checkpoints/previous.pt"
    damaged = last.read_bytes()[:-100]
    last.write_bytes(damaged)
    epoch = read_checkpoint(previous)["epoch"]

    train_here(*data.training_command(folder, "--epochs", "3", "--max-steps", "1", "--log-level", "0"))
    assert "previous.pt" in capsys.readouterr().err
    assert read_checkpoint(last)["epoch"] >= epoch
    assert read_checkpoint(previous)["epoch"] == epoch
    assert last.with_name("last.pt.damaged").read_bytes() == damaged


def test_resume_without_last_pt_continues_from_the_newest_checkpoint(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (folder / "checkpoints/last.pt").unlink()
    before = {path.name for path in folder.rglob("*.pt")}
    records = len(read_events(folder, "step"))

    train_here(*data.training_command(folder, "--epochs", "3", "--max-steps", "1", "--log-level", "0"))
    assert "last.pt is missing" in capsys.readouterr().err
    assert {path.name for path in folder.rglob("*.pt")} >= before
    assert len(read_events(folder, "step")) >= records // 2  # the epochs before the checkpoint stay in the log
