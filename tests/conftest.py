"""What the end-to-end tests share: real images, the commands as a user types them, a small run."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.training.metadata_service import MetadataServer, metadata_server

REPOSITORY = Path(__file__).resolve().parent.parent
TRAIN_PER_CLASS, VAL_PER_CLASS = 32, 21
NUM_VAL = 203  # not divisible by any number of processes or batch size in use
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as behind a shell's "&": the commands under test must hear it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side on few cores
# The same examples in every run of CI: what it finds must be the change's doing. Elsewhere new ones are drawn.
settings.register_profile("ci", derandomize=True)
if "CI" in os.environ:
    settings.load_profile("ci")

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With REBAR_REQUIRE_GPU set, count a GPU test that is skipped as failed, unless it needs FFCV."""
    report = yield
    required = "REBAR_REQUIRE_GPU" in os.environ and item.get_closest_marker("gpu") is not None
    if required and report.skipped and not hasattr(report, "wasxfail") and "ffcv" not in str(report.longrepr):
        report.outcome = "failed"
    return report


def run(*words: str | Path, expect: int | None = 0, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run ``python WORDS`` in the repository, and check its exit status (None: any)."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if expect is not None:
        assert done.returncode == expect, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def torchrun(processes: int, *words: str | Path) -> list[str | Path]:
    """The words for :func:`run` that start ``processes`` processes of a script."""
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *words]


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@dataclass(frozen=True)
class Data:
    """A small real data set: the folder of images, and the two files written of it."""

    tree: Path
    folder: Path

    @property
    def train(self) -> Path:
        return self.folder / "train.beton"

    @property
    def val(self) -> Path:
        return self.folder / "val.beton"

    def training_command(self, run_folder: Path, *words: str) -> list[str | Path]:
        """``train_imagenet.py`` with the tests' recipe on this data."""
        data = ["--data.train_dataset", self.train, "--data.val_dataset", self.val, "--logging.folder", run_folder]
        return ["train_imagenet.py", "--config-file", "rn50_configs/tiny.yaml", *data, *words]


@pytest.fixture(scope="session", autouse=True)
def cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is written of a source in place of a .beton does not go into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBAR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageNet-shaped tree of Fashion-MNIST images, 32 a class to train and 21 to validate."""
    tree = tmp_path_factory.mktemp("images") / "tree"
    counts = ["--train-per-class", str(TRAIN_PER_CLASS), "--val-per-class", str(VAL_PER_CLASS)]
    done = run("scripts/build_fashion_mnist_tree.py", "--out", tree, *counts, expect=None)
    if done.returncode != 0:
        pytest.skip(f"no Fashion-MNIST here: {done.stderr.strip()}")
    return tree


@pytest.fixture(scope="session")
def data(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """``train.beton`` and ``val.beton``, written through the command line."""
    folder = tmp_path_factory.mktemp("betons")
    where = ["--data-dir", images, "--write-path", f"{folder}/"]
    run("write_dataset.py", "--split", "train", *where)
    run("write_dataset.py", "--split", "val", "--subset", str(NUM_VAL), *where)
    return Data(tree=images, folder=folder)


@pytest.fixture(scope="session")
def finished_run(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete two-epoch run in one process."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(*data.training_command(folder))
    return folder


def read_events(folder: Path, event: str) -> list[dict[str, Any]]:
    """The records of one event in a run's log."""
    lines: Sequence[str] = (folder / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


@pytest.fixture
def ec2_metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataServer]:
    """EC2's instance metadata service, on loopback."""
    with metadata_server() as server:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be asked
        yield server
