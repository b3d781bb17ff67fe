"""Training on an image folder: one of several ranks writes the .beton files, later commands reuse them."""

import tarfile
from pathlib import Path

import pytest

import evaluate
from rebar.beton.sidecar import sidecar_path
from rebar.errors import RebarError
from tests.conftest import Data, read_events, train_here
from tests.processes import start, start_ranks
from tests.sources.conftest import add_file


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(data: Data, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with two ranks on an image folder. Return the run folder."""
    folder = tmp_path_factory.mktemp("runs") / "on_source"
    args = ["--config-file", "rn50_configs/tiny.yaml", "--epochs", "1", "--logging.folder", folder]
    datasets = ["--data.train_dataset", data.tree, "--data.val_dataset", data.tree, "--training.batch_size", "32"]
    ranks = start_ranks(2, ["train_imagenet.py", *args, *datasets], REBAR_CACHE=str(cache))
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output
    printed = "".join(rank.output for rank in ranks)
    assert printed.count("writing   ") == 2  # once per split, by either rank
    return folder


def test_cached_beton_equals_write_dataset_output(trained: Path, data: Data, cache: Path) -> None:
    (written,) = cache.glob("*-train-full-*.beton")
    assert written.read_bytes() == data.train.read_bytes()
    assert sidecar_path(written).read_bytes() == sidecar_path(data.train).read_bytes()


def test_training_on_an_image_folder_completes(trained: Path, data: Data) -> None:
    assert read_events(trained, "end")[0]["epoch"] == 1
    assert str(data.tree) in (trained / "config.yaml").read_text()


def test_evaluate_reuses_the_cached_beton(
    trained: Path, data: Data, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REBAR_CACHE", str(cache))
    evaluate.main(["--checkpoint", str(trained), "--data", str(data.tree)])
    shown = capsys.readouterr().out
    assert "writing   " not in shown
    assert "210 images" in shown
    assert len(list(cache.glob("*.beton"))) == 2


def test_unusable_source_stops_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    args = ["--config-file", "rn50_configs/tiny.yaml", "--data.train_dataset", tmp_path / "empty"]
    paths = ["--data.val_dataset", tmp_path / "empty", "--logging.folder", tmp_path / "run"]
    ranks = start_ranks(2, ["train_imagenet.py", *args, *paths], REBAR_CACHE=str(tmp_path / "cache"))
    assert [rank.wait() for rank in ranks] == [1, 1]
    printed = "".join(rank.output for rank in ranks)
    assert f"{tmp_path}/empty" in printed
    assert "[source-empty]" in printed
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache").glob("*.beton"))


def test_image_key_chooses_the_image_of_a_source(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_plots: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REBAR_CACHE", str(tmp_path / "cache"))
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"set-{split}-0.tar", "w") as tar:
            for number, path in enumerate(sorted((data.tree / split).glob("*/*"))[::4]):
                add_file(tar, f"{number}.jpg", path.read_bytes())
                add_file(tar, f"{number}.mask.png", b"not decodable")
                add_file(tar, f"{number}.cls", path.parent.name.encode())
    shards = [
        "--data.train_dataset",
        str(tmp_path / "*-train-*.tar"),
        "--data.val_dataset",
        str(tmp_path / "*-val-*.tar"),
    ]
    command = data.training_command(tmp_path / "run", *shards, "--training.batch_size", "8", "--epochs", "1")
    with pytest.raises(RebarError) as raised:
        train_here(*command)
    assert raised.value.code == "webdataset-ambiguous"
    train_here(*command, "--image-key", "jpg")
    capsys.readouterr()
    evaluate.main(["--checkpoint", str(tmp_path / "run"), "--data", shards[3], "--image-key", "jpg"])
    assert "writing   " not in capsys.readouterr().out  # it is the file that training wrote


def test_max_classes_and_samples_apply_to_a_source(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_plots: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REBAR_CACHE", str(tmp_path / "cache"))
    limits = ["--max-classes", "3", "--max-samples-per-class", "8", "--training.batch_size", "8", "--epochs", "1"]
    datasets = ["--data.train_dataset", str(data.tree), "--data.val_dataset", str(data.tree)]
    train_here(*data.training_command(tmp_path / "run", *datasets, *limits))
    assert "24 training and 24 validation images, 3 classes" in capsys.readouterr().out


def test_max_classes_are_refused_for_a_beton(data: Data, tmp_path: Path) -> None:
    with pytest.raises(RebarError) as caught:
        train_here(*data.training_command(tmp_path / "run", "--max-classes", "3"))
    assert caught.value.code == "config-conflict"


def test_use_hf_requests_imagenet_1k(tmp_path: Path) -> None:
    """Only the request is tested: there is no server at this address."""
    options = ["--config-file", "rn50_configs/tiny.yaml", "--use-hf", "--data-subset", "small"]
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    command = ["train_imagenet.py", *options, "--logging.folder", tmp_path / "run"]
    process = start(command, REBAR_CACHE=str(tmp_path / "cache"), **hub)
    assert process.wait() == 1
    assert "opening   hf:imagenet-1k (train)" in process.output
    assert "http://127.0.0.1:9" in process.output
    assert "[hub-unreachable]" in process.output
    assert "HTTPS_PROXY" in process.output
