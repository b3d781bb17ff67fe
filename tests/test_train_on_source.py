"""A folder in place of a .beton: written once by one process of several, then found."""

from pathlib import Path

import pytest

from rebar.beton.sidecar import sidecar_path
from tests.conftest import Data, read_events, run, torchrun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(data: Data, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes on the folder of images."""
    folder = tmp_path_factory.mktemp("runs") / "on_source"
    words = ["--config-file", "rn50_configs/tiny.yaml", "--epochs", "1", "--logging.folder", folder]
    datasets = ["--data.train_dataset", data.tree, "--data.val_dataset", data.tree, "--training.batch_size", "32"]
    done = run(*torchrun(2, "train_imagenet.py", *words, *datasets), REBAR_CACHE=str(cache))
    assert done.stdout.count("writing   ") == 2  # a split each, whichever of the processes did it
    return folder


def test_the_file_is_that_of_write_dataset(trained: Path, data: Data, cache: Path) -> None:
    (written,) = cache.glob("*-train-full-*.beton")
    assert written.read_bytes() == data.train.read_bytes()
    assert sidecar_path(written).read_bytes() == sidecar_path(data.train).read_bytes()


def test_it_trained_on_it(trained: Path, data: Data) -> None:
    assert read_events(trained, "end")[0]["epoch"] == 1
    assert str(data.tree) in (trained / "config.yaml").read_text()


def test_the_next_command_finds_it(trained: Path, data: Data, cache: Path) -> None:
    done = run("evaluate.py", "--checkpoint", trained, "--data", data.tree, REBAR_CACHE=str(cache))
    assert "writing   " not in done.stdout
    assert "210 images" in done.stdout
    assert len(list(cache.glob("*.beton"))) == 2


def test_a_source_that_cannot_be_read_ends_all_processes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = ["--config-file", "rn50_configs/tiny.yaml", "--data.train_dataset", tmp_path / "empty"]
    where = ["--data.val_dataset", tmp_path / "empty", "--logging.folder", tmp_path / "run"]
    done = run(*torchrun(2, "train_imagenet.py", *words, *where), expect=None, REBAR_CACHE=str(tmp_path / "cache"))
    assert done.returncode != 0
    assert f"{tmp_path}/empty: holds no class folders" in done.stderr
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache").glob("*.beton"))


def test_imagenet_from_the_hub_is_one_word(tmp_path: Path) -> None:
    """Here only that it is asked for: the hub of this test does not answer."""
    done = run(
        "train_imagenet.py", "--config-file", "rn50_configs/tiny.yaml", "--use-hf", "--data-subset", "small",
        "--logging.folder", tmp_path / "run", expect=1,
        REBAR_CACHE=str(tmp_path / "cache"), HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "hf"),
    )  # fmt: skip
    assert "writing   hf:imagenet-1k (train, subset small)" in done.stdout
    assert "http://127.0.0.1:9 cannot be asked for it" in done.stderr
