"""Shared fixtures and helpers: a small real dataset, commands as a user types them, and a finished run."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import write_dataset
from tests.processes import REPOSITORY, start_ranks
from tests.training.metadata_service import MetadataServer, metadata_server

TRAIN_PER_CLASS, VAL_PER_CLASS = 32, 21
TWO_RANKS = ("--training.batch_size", "8")  # the same global batch as one rank with the recipe's 16
NUM_VAL = 203  # not divisible by any world size or batch size in use
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as after "&" in a shell; the tested commands need SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests may run in parallel on few cores
# CI uses the same examples in every run, so that a failure is due to the change. Elsewhere they are random.
settings.register_profile("ci", derandomize=True)
if "CI" in os.environ:
    settings.load_profile("ci")

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files at the top level. They run whole commands, and the slowest file should not start last."""
    items.sort(key=lambda item: len(item.path.parts))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With REBAR_REQUIRE_GPU set, count a GPU test that is skipped as failed, unless it needs FFCV."""
    report = yield
    required = "REBAR_REQUIRE_GPU" in os.environ and item.get_closest_marker("gpu") is not None
    if required and report.skipped and not hasattr(report, "wasxfail") and "ffcv" not in str(report.longrepr):
        report.outcome = "failed"
    return report


def run(*args: str | Path, expect: int | None = 0, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run ``python WORDS`` in the repository, and check its exit status (None: any)."""
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if expect is not None:
        assert done.returncode == expect, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def torchrun(processes: int, *args: str | Path) -> list[str | Path]:
    """Return the arguments of :func:`run` that start a script with ``processes`` ranks."""
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *args]


def train_here(*command: str | Path) -> None:
    """Run a command of :meth:`Data.training_command` in this process."""
    import torch  # not at the top: the tests of other packages do not need it

    import train_imagenet

    # FFCV's pipelines change it, and with it the order of sums
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    train_imagenet.main([str(arg) for arg in command[1:]])


@contextmanager
def mounted_tmpfs(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """Mount a file system of a given size. Skips the test if that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system is not allowed")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Write a file that uses all space of a file system, and return its path."""
    path = disk / "other_data"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    return path


@dataclass(frozen=True)
class Data:
    """A small real dataset: the image folder ``tree``, and ``folder`` with the betons written from it."""

    tree: Path
    folder: Path

    @property
    def train(self) -> Path:
        return self.folder / "train.beton"

    @property
    def val(self) -> Path:
        return self.folder / "val.beton"

    def training_command(self, run_folder: Path, *args: str) -> list[str | Path]:
        """Return a command for :func:`run` or :func:`train_here` that trains on this data with tiny.yaml."""
        data = ["--data.train_dataset", self.train, "--data.val_dataset", self.val, "--logging.folder", run_folder]
        return ["train_imagenet.py", "--config-file", "rn50_configs/tiny.yaml", *data, *args]


@pytest.fixture(scope="session", autouse=True)
def separate_dataset_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep betons that are converted from other sources out of the user's dataset cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBAR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image folder of Fashion-MNIST, with 32 training and 21 validation images per class."""
    tree = tmp_path_factory.mktemp("images") / "tree"
    counts = ["--train-per-class", str(TRAIN_PER_CLASS), "--val-per-class", str(VAL_PER_CLASS)]
    done = run("scripts/build_fashion_mnist_tree.py", "--out", tree, *counts, expect=None)
    if done.returncode != 0:
        pytest.skip(f"Fashion-MNIST is not available: {done.stderr.strip()}")
    return tree


@pytest.fixture(scope="session")
def data(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Write ``train.beton`` and ``val.beton`` with the command line."""
    folder = tmp_path_factory.mktemp("betons")
    paths = ["--data-dir", str(images), "--write-path", f"{folder}/"]
    write_dataset.main(["--split", "train", *paths])
    write_dataset.main(["--split", "val", "--subset", str(NUM_VAL), *paths])
    return Data(tree=images, folder=folder)


@pytest.fixture(scope="session")
def finished_run(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished two-epoch run in one process."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train_here(*data.training_command(folder))
    return folder


@pytest.fixture(scope="session")
def two_ranks(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the same run on two ranks."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    ranks = start_ranks(2, data.training_command(folder, *TWO_RANKS))
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output
    return folder


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not draw the plot and the report of runs in this process, which takes longer than a few training steps."""
    monkeypatch.setattr("rebar.training.launch.write_plot_and_report", lambda folder: None)


def read_events(folder: Path, event: str) -> list[dict[str, Any]]:
    """Return the records of one event in a run's log."""
    lines: Sequence[str] = (folder / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


@pytest.fixture
def ec2_metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataServer]:
    """Run a fake of EC2's instance metadata service on loopback."""
    with metadata_server() as server:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be used
        yield server
