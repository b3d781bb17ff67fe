"""Each file in examples/ trains, or reads, a small real dataset."""

import importlib
import re
from pathlib import Path

import pytest

import evaluate
from tests.conftest import NUM_VAL, REPOSITORY, Data, train_here

SMALLEST = "shufflenet_v2_x0_5"  # of torchvision's models
SMALL = ["--batch-size", "32", "--resolution", "32", "--num-classes", "10"]


def run_example(name: str, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run an example in this process; return its standard output."""
    importlib.import_module(f"examples.{name}").main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_plain_pytorch_loop_evaluates_every_image(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_example("plain_pytorch", capsys, data.train, data.val, "--arch", SMALLEST, "--epochs", "2", *SMALL)
    assert re.findall(r"epoch (\d): top-1 [\d.]+% of (\d+) images", printed) == [
        ("1", str(NUM_VAL)),
        ("2", str(NUM_VAL)),
    ]


def test_timm_components_train_with_the_loader(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    printed = run_example(
        "timm_components", capsys, data.train, data.val, "--model", "resnet10t", "--epochs", "1", *SMALL
    )
    assert f"of {NUM_VAL} images" in printed


@pytest.mark.filterwarnings("ignore")  # Lightning's advice about loggers and workers
def test_lightning_trains_with_the_data_module(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pytorch_lightning")
    printed = run_example(
        "lightning_datamodule", capsys, data.train, data.val, "--arch", SMALLEST, "--epochs", "1", *SMALL
    )
    assert 0 <= float(printed.split("val_top1 ")[-1]) <= 1


def test_ffcv_loader_delivers_every_image_with_our_decoder(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ffcv")
    printed = run_example("ffcv_loader", capsys, data.val, "--batch-size", "32", "--resolution", "32")
    assert f"{NUM_VAL} images of (3, 32, 32)" in printed


def test_own_model_is_trained_and_evaluated_by_the_scripts(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(*data.training_command(tmp_path / "run", "--arch", "examples.own_model:build", "--epochs", "1"))
    assert "examples.own_model:build" in capsys.readouterr().out
    evaluate.main(["--checkpoint", str(tmp_path / "run"), "--data", str(data.val), "--resolution", "32"])
    assert "top-1" in capsys.readouterr().out


def test_every_example_is_described_in_the_readme() -> None:
    described = re.findall(r"\]\((\w+\.py)\)", (REPOSITORY / "examples/README.md").read_text())
    assert sorted(described) == sorted(path.name for path in (REPOSITORY / "examples").glob("*.py"))
