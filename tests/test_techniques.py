"""End-to-end tests of the training techniques, one by one and all together."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch

import evaluate
from rebar.optim.averaging import weights_to_evaluate
from rebar.training.checkpoint import read_checkpoint
from tests.conftest import Data, read_events, train_here
from tests.processes import interrupt, send, start_ranks
from tests.test_train_imagenet import ACCURACY, same_weights

pytestmark = pytest.mark.usefixtures("without_plots")

EVERYTHING = [
    "--augmentation=strong",
    "--use-mixup",
    "--use-cutmix",
    "--use-randaugment",
    "--randaugment-noise=2",
    "--randaugment-probability=0.7",
    "--repeated-augmentation=3",
    "--color-jitter=0.3",
    "--color-jitter-hue=0.05",
    "--stochastic-depth=0.2",
    "--loss-type=bce",
    "--optimizer=lamb",
    "--clip-norm=1",
    "--lr-schedule-type=cosine",
    "--warmup-epochs=0.5",
    "--lr-scaling=sqrt",
    "--base-batch=32",
    "--accumulate=2",
    "--sam-rho=0.1",
    "--sam-every=3",
    "--initialization=composer",
]
FIVE_STEPS = ["--training.batch_size=64"]  # per epoch, instead of 20


def evaluated_top1(data: Data, folder: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """Evaluate a run's checkpoint. Returns the printed top-1 accuracy in percent."""
    capsys.readouterr()
    evaluate.main(["--checkpoint", str(folder), "--data", str(data.val)])
    match = ACCURACY.search(capsys.readouterr().out)
    assert match
    return float(match.group(1))


def logged_top1(folder: Path) -> object:
    """Return the last top-1 accuracy in the log, in percent, with the precision that evaluate.py prints."""
    return pytest.approx(100 * read_events(folder, "epoch")[-1]["val/top1"], abs=0.005)


def test_resume_with_all_techniques_after_a_kill_gives_identical_weights(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ema = ["--use-ema", "--ema-half-life=8", "--ema-update-every=3"]
    techniques = [*EVERYTHING, *ema, "--epochs=1", "--every-steps=4"]
    train_here(*data.training_command(tmp_path / "uninterrupted", *techniques))
    command = data.training_command(tmp_path / "killed", *techniques)
    assert interrupt(command, tmp_path / "killed", 6, send(signal.SIGKILL)) == -signal.SIGKILL
    train_here(*command)
    assert re.search(r"resuming after (4|8|12|16) of 20 steps of epoch 1", capsys.readouterr().out)
    assert same_weights(tmp_path / "uninterrupted", tmp_path / "killed")
    averages = [
        weights_to_evaluate(read_checkpoint(tmp_path / name / "checkpoints/last.pt"))
        for name in ("uninterrupted", "killed")
    ]
    assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())

    assert evaluated_top1(data, tmp_path / "killed", capsys) == logged_top1(tmp_path / "killed")
    rates = [record["train/lr"] for record in read_events(tmp_path / "uninterrupted", "step")]
    assert rates[10] == max(rates) == pytest.approx(0.05 * (16 / 32) ** 0.5)


def test_swa_evaluates_the_mean_of_the_last_epochs(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swa = ["--epochs=3", "--use-swa", "--swa-start=0.34", "--swa-bn-batches=3", "--optimizer=sgdw", "--nesterov"]
    train_here(*data.training_command(tmp_path, *swa, *FIVE_STEPS))
    checkpoint = read_checkpoint(tmp_path / "checkpoints/last.pt")
    assert checkpoint["average"]["updates"] == 2
    averaged = weights_to_evaluate(checkpoint)
    assert not torch.equal(averaged["fc.weight"], checkpoint["model"]["fc.weight"])
    assert averaged["bn1.num_batches_tracked"] == 3
    assert evaluated_top1(data, tmp_path, capsys) == logged_top1(tmp_path)


def test_gradient_checkpointing_gives_identical_weights(data: Data, tmp_path: Path) -> None:
    train_here(*data.training_command(tmp_path / "plain", "--max-steps=5"))
    train_here(*data.training_command(tmp_path / "less", "--max-steps=5", "--gradient-checkpointing"))
    assert same_weights(tmp_path / "plain", tmp_path / "less")


def test_all_techniques_on_two_ranks(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swa = ["--use-swa", "--swa-start=0", "--swa-bn-batches=2", "--epochs=1"]
    command = data.training_command(tmp_path, *EVERYTHING, *swa, "--training.batch_size=32")
    ranks = start_ranks(2, command)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output
    assert "finished" in ranks[0].output
    assert evaluated_top1(data, tmp_path, capsys) == logged_top1(tmp_path)


def test_center_crops_channel_statistics_and_onecycle(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps({"mean": [0.3, 0.3, 0.3], "std": [0.35, 0.35, 0.35]}))
    folder = tmp_path / "run"
    args = ["--augmentation=none", f"--stats-file={stats}", "--lr-schedule-type=onecycle", "--max-lr=0.1"]
    train_here(*data.training_command(folder, *args, "--epochs=1", "--optimizer=lars"))
    checkpoint = read_checkpoint(folder / "checkpoints/last.pt")
    assert (checkpoint["mean"], checkpoint["std"]) == ([0.3] * 3, [0.35] * 3)
    assert max(record["train/lr"] for record in read_events(folder, "step")) == pytest.approx(0.1, rel=0.02)
    stats.unlink()  # the checkpoint contains them
    assert evaluated_top1(data, folder, capsys) == logged_top1(folder)


def test_options_without_effect_print_warnings(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--max-steps=1", "--mix-probability=0.5", "--ema-half-life=3", "--bce-threshold=0.2", "--sync-bn"]
    train_here(*data.training_command(tmp_path, *args))
    err = capsys.readouterr().err
    for name in (
        "regularization.mix_probability",
        "averaging.ema_half_life",
        "loss.bce_threshold",
        "execution.sync_bn",
    ):
        assert f"warning: {name}" in err


@pytest.mark.nightly
def test_compiled_model_trains_at_growing_resolutions(data: Data, tmp_path: Path) -> None:
    sizes = ["--min-res=36", "--max-res=56", "--end-ramp=5", "--round-to=4", "--epochs=6", "--log-level=0"]
    compiled = ["--compile-model", "--compile-backend=aot_eager"]
    train_here(*data.training_command(tmp_path / "plain", *sizes, *FIVE_STEPS, "--max-steps=1"))
    torch._dynamo.utils.counters.clear()
    train_here(*data.training_command(tmp_path / "compiled", *sizes, *FIVE_STEPS, *compiled))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    first = [read_events(tmp_path / name, "step")[0]["train/loss"] for name in ("plain", "compiled")]
    assert first[0] == pytest.approx(first[1], rel=1e-4)
    names = [read_checkpoint(tmp_path / name / "checkpoints/last.pt")["model"].keys() for name in ("plain", "compiled")]
    assert names[0] == names[1]
