"""End-to-end tests of train_imagenet.py: train, kill, resume, evaluate."""

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import evaluate
import train_imagenet
from rebar.beton import BetonFile
from rebar.cli import run_command
from rebar.config import build_config, load_config_files
from rebar.errors import RebarError
from rebar.storage.run_store import read_status
from rebar.training.checkpoint import read_checkpoint
from rebar.training.config import TrainConfig
from rebar.training.run import Run
from tests.conftest import NUM_VAL, REPOSITORY, Data, read_events, train_here
from tests.processes import start, start_ranks

pytestmark = pytest.mark.usefixtures("without_plots")
ACCURACY = re.compile(r"top-1 ([\d.]+)%, top-5 ([\d.]+)%; .*top-1 ([\d.]+)%, top-5 ([\d.]+)%")


def same_weights(a: Path, b: Path) -> bool:
    first, second = (read_checkpoint(folder / "checkpoints/last.pt")["model"] for folder in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------ one rank


def test_run_writes_plot_report_and_log(finished_run: Path) -> None:
    assert (finished_run / "plot.png").read_bytes().startswith(b"\x89PNG")
    page = (finished_run / "report.html").read_text()
    assert "<svg" in page
    assert ">finished, " in page
    epochs = read_events(finished_run, "epoch")
    assert [record["epoch"] for record in epochs] == [0, 1]
    expected = {"train/loss", "train/top1", "val/loss", "val/top1", "val/top5", "val/top1_tta", "train/lr"}
    expected |= {"train/resolution", "throughput/samples_per_second", "time/data_wait_fraction"}
    assert all(expected <= record.keys() for record in epochs)
    (end,) = read_events(finished_run, "end")
    assert end["parameters"] == 272_474  # ResNet-20 with ten classes


def test_status_is_written_after_each_epoch(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    print_epoch = train_imagenet.print_epoch

    def read_then_print(run: Run) -> None:
        seen.append(read_status(run.folder.status))
        print_epoch(run)

    monkeypatch.setattr(train_imagenet, "print_epoch", read_then_print)
    train_here(*data.training_command(tmp_path / "run"))
    steps = [status.step for status in seen if status]
    assert [(status.state, status.epoch) for status in seen if status] == [("running", 1), ("running", 2)]
    assert steps[1] == 2 * steps[0] > 0


def test_saved_config_is_a_valid_config_file(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_imagenet.main(["--config-file", str(finished_run / "config.yaml"), "--print-config"])
    assert capsys.readouterr().out == (finished_run / "config.yaml").read_text()


def test_learning_rate_of_every_step_equals_the_reference(finished_run: Path) -> None:
    # two epochs of 20 steps: from 1e-4 of the peak of 0.05 linearly to the peak, then to 0
    for record in read_events(finished_run, "step"):
        epoch = record["epoch"]
        expected = 0.05 * (1e-4 + (1 - 1e-4) * epoch) if epoch <= 1 else 0.05 * (2 - epoch)
        assert record["train/lr"] == pytest.approx(expected, rel=1e-9)


def test_rerunning_a_finished_run_changes_nothing(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--config-file", str(finished_run / "config.yaml")]
    before = (finished_run / "checkpoints/last.pt").read_bytes()
    train_imagenet.main(command)
    assert "complete" in capsys.readouterr().out
    assert (finished_run / "checkpoints/last.pt").read_bytes() == before
    with pytest.raises(RebarError, match="--overwrite"):
        train_imagenet.main([*command, "--resume", "none"])


def test_evaluate_counts_every_image_once_and_equals_the_log(
    data: Data, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = read_events(finished_run, "epoch")[-1]
    evaluate.main(["--checkpoint", str(finished_run), "--data", str(data.val)])
    shown = capsys.readouterr().out
    assert shown.startswith(f"{NUM_VAL} images")
    match = ACCURACY.search(shown)
    assert match
    names = ("val/top1", "val/top5", "val/top1_tta", "val/top5_tta")
    for printed, name in zip(match.groups(), names, strict=True):
        assert float(printed) == pytest.approx(100 * logged[name], abs=0.005)
        assert logged[name] * NUM_VAL == pytest.approx(round(logged[name] * NUM_VAL), abs=1e-9)
    train_here(*data.training_command(finished_run, "--eval-only"))
    assert match.group(0) in capsys.readouterr().out


def test_progressive_resizing_with_a_step_schedule(data: Data, tmp_path: Path) -> None:
    recipe = ["--min-res", "8", "--max-res", "16", "--round-to", "4", "--end-ramp", "2", "--epochs", "3"]
    steps = ["--lr-schedule-type", "step", "--step-length", "1", "--training.batch_size", "64"]
    train_here(*data.training_command(tmp_path, *recipe, *steps, "--use-blurpool"))
    epochs = read_events(tmp_path, "epoch")
    assert [record["train/resolution"] for record in epochs] == [8, 12, 16]


# ------------------------------------------------------------------ extended and limited runs


def rates_after(folder: Path, step: int) -> list[float]:
    return [record["train/lr"] for record in read_events(folder, "step") if record["step"] >= step]


def test_reset_schedule_extends_a_run_without_a_jump(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    command = data.training_command(folder, "--epochs", "4", "--log-level", "0")
    last = rates_after(folder, 39)[0]
    train_here(*command, "--reset-schedule", "--max-steps", "50")  # ends within the third epoch
    train_here(*command, "--reset-schedule")  # the same command resumes without another reset
    extended = rates_after(folder, 40)
    assert len(extended) == 40
    assert extended[0] == pytest.approx(last)
    assert max(extended) == pytest.approx(0.05 / 3, rel=0.02)  # the schedule of 4 epochs after its third
    assert max(abs(b - a) for a, b in itertools.pairwise([last, *extended])) < 0.003
    assert extended[-1] == pytest.approx(0.05 / 3 / 20, rel=0.01)
    assert "resuming after 10 of 20 steps of epoch 3" in capsys.readouterr().out


def test_freeze_lr_holds_the_learning_rate(data: Data, finished_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    last = rates_after(folder, 39)[0]
    train_here(*data.training_command(folder, "--epochs", "3", "--freeze-lr", "--log-level", "0"))
    assert rates_after(folder, 40) == [last] * 20
    train_here(
        *data.training_command(folder, "--epochs", "5", "--freeze-lr", "0.01", "--reset-schedule", "--log-level", "0")
    )
    assert rates_after(folder, 60) == [0.01] * 40
    # without --freeze-lr, the schedule that was reset at epoch 3 continues, in its last third
    train_here(*data.training_command(folder, "--epochs", "6", "--log-level", "0"))
    assert 0 < rates_after(folder, 100)[-1] < rates_after(folder, 100)[0] < 0.03


def test_extending_a_run_without_reset_schedule_warns_about_the_jump(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    train_here(*data.training_command(folder, "--epochs", "4", "--max-steps", "41"))
    assert "the learning rate jumps from 0.0025 to" in capsys.readouterr().err


def test_limits_end_a_run_with_evaluation_and_export(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = data.training_command(tmp_path, "--export", "both")
    train_here(*command, "--max-steps", "3")
    assert len(read_events(tmp_path, "step")) == 3
    assert "finished" in capsys.readouterr().out
    assert "max_steps 3" in (tmp_path / "status.json").read_text()
    train_here(*command, "--budget-hours", "1e-9")  # used up before it starts
    assert len(read_events(tmp_path, "step")) == 3
    train_here(*command, "--target-top1", "0.01")  # reached after the first epoch
    assert [(record["epoch"], record["step"]) for record in read_events(tmp_path, "epoch")] == [(0, 3), (0, 20)]
    assert "target_top1" in (tmp_path / "status.json").read_text()
    assert {path.name for path in tmp_path.glob("weights.*")} == {"weights.pth", "weights.safetensors"}


def test_dry_run_estimates_and_writes_nothing(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--dry-run", "--max-res", "32", "--end-ramp", "1", "--price-per-hour", "3"]
    train_here(*data.training_command(tmp_path / "run", *args))
    shown = capsys.readouterr().out
    assert re.search(r"images/s: [\d,]+ at 16 px, [\d,]+ at 32 px", shown)
    assert re.search(r"time: about \d+ (s|min|h)", shown)
    assert re.search(r"cost: about \$\d", shown)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["mlperf_lars", "algoperf_nesterov"])
def test_published_settings_pass_a_dry_run(
    name: str, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--arch", "resnet20", "--min-res", "16", "--max-res", "16", "--validation.resolution", "16"]
    small += ["--training.batch_size", "8", "--final-resolutions", "", "--precision", "32", "--dry-run"]
    config_file = ["--config-file", f"rn50_configs/{name}.yaml"]
    train_here(*data.training_command(tmp_path / "run", *config_file, *small))
    assert re.search(r"time: about \d+", capsys.readouterr().out)


def test_find_lr_on_two_ranks_does_not_change_the_run(data: Data, finished_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    args = data.training_command(folder, "--training.batch_size", "8", "--find-lr-steps", "10")[1:]
    ranks = start_ranks(2, ["scripts/lr_range_test.py", *args])
    assert [rank.wait() for rank in ranks] == [0, 0]
    shown = "".join(rank.output for rank in ranks)
    assert shown.count("lr_range_test.png") == 1  # printed by rank 0 only
    assert (folder / "lr_range_test.png").exists()
    assert same_weights(folder, finished_run)
    assert (folder / "log.jsonl").read_bytes() == (finished_run / "log.jsonl").read_bytes()


# ------------------------------------------------------------------ several ranks


def test_evaluation_does_not_depend_on_the_number_of_ranks(
    data: Data, two_ranks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = read_events(two_ranks, "epoch")[-1]
    command = ["evaluate.py", "--checkpoint", str(two_ranks), "--data", str(data.val)]
    evaluate.main(command[1:])
    alone = ACCURACY.search(capsys.readouterr().out)
    ranks = start_ranks(3, command)
    assert [rank.wait() for rank in ranks] == [0, 0, 0]
    three = ACCURACY.search(ranks[0].output)
    assert alone
    assert three
    assert alone.groups() == three.groups()
    assert float(alone.group(1)) == pytest.approx(100 * logged["val/top1"], abs=0.005)
    assert float(alone.group(3)) == pytest.approx(100 * logged["val/top1_tta"], abs=0.005)


# ------------------------------------------------------------------ recipes


RECIPES = sorted(path.name for path in (REPOSITORY / "rn50_configs").glob("*.yaml"))


def train_recipe(recipe: str, data: Data, folder: Path, *args: str) -> None:
    """Train a recipe with fewer and smaller images only."""
    small = [  # at 16 px, oneDNN 3.12 leaves parts of a bf16 gradient uninitialized (3x3 kernel, one pixel)
        "--min-res=24",
        "--max-res=24",
        "--validation.resolution=24",
        "--validation.final_resolutions=24",
        "--training.batch_size=64",
        "--num-workers=1",
        "--epochs=1",
        "--model.num_classes=0",
    ]
    paths = [f"--data.train_dataset={data.train}", f"--data.val_dataset={data.val}", f"--logging.folder={folder}"]
    train_imagenet.main(["--config-file", str(REPOSITORY / "rn50_configs" / recipe), *small, *paths, *args])


@pytest.mark.parametrize("recipe", ["demo.yaml", "g5_1gpu.yaml", "mosaicml_medium.yaml", "rsb_a2.yaml"])
def test_recipe_trains_a_small_model(
    recipe: str, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_recipe(recipe, data, tmp_path, "--arch=resnet20", "--training.precision=32", "--max-steps=2")
    assert len(read_events(tmp_path, "end")) == 1
    assert "finished" in capsys.readouterr().out


@pytest.mark.nightly
@pytest.mark.parametrize("recipe", [name for name in RECIPES if not name.endswith("_base.yaml")])
def test_recipe_trains_an_epoch(recipe: str, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_recipe(recipe, data, tmp_path)
    (end,) = read_events(tmp_path, "end")
    arch = build_config(TrainConfig, load_config_files([REPOSITORY / "rn50_configs" / recipe])).model.arch
    parameters = {"resnet20": 272_474, "resnet50": 23_528_522, "resnet10_small": 1_228_970}
    assert end["parameters"] == parameters[arch]
    assert "finished" in capsys.readouterr().out


# ------------------------------------------------------------------ user errors


def error_line(*args: str | Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that fails. Returns its error, which must be one line on stderr; the exit status must be 1."""
    with pytest.raises(SystemExit) as exited:
        run_command(train_imagenet.main, [str(arg) for arg in args[1:]])
    message = capsys.readouterr().err
    assert exited.value.code == 1
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def truncated_beton(data: Data, tmp_path: Path) -> list[str | Path]:
    short = tmp_path / "short.beton"
    short.write_bytes(data.train.read_bytes()[:-1_000_000])
    return ["--data.train_dataset", short]


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda data, tmp_path: ["--data.train_dataset", tmp_path / "none.beton"], "none.beton"),
        (lambda data, tmp_path: ["--data.train_dataset", tmp_path], "class"),
        (truncated_beton, "short.beton"),
        (lambda data, tmp_path: ["--epoch", "3"], "--epochs"),
        (lambda data, tmp_path: ["--batch-size"], "--batch-size"),
        (lambda data, tmp_path: ["--min-res", "0"], "--min-res"),
        (lambda data, tmp_path: ["--max-res", "12"], "[config-conflict]"),
        (lambda data, tmp_path: ["--training.batch_size", "100000"], "batch size"),
        (lambda data, tmp_path: ["--arch", "resnet51"], "resnet50"),
        (lambda data, tmp_path: ["--config-file", tmp_path / "my.yaml"], "my.yaml"),
        (lambda data, tmp_path: ["--resume", tmp_path / "my.pt"], "[checkpoint-not-found]"),
        (lambda data, tmp_path: ["--eval-only"], "[checkpoint-not-found]"),
        (lambda data, tmp_path: ["--num-classes", "3"], "[data-class-mismatch]"),
    ],
)
def test_user_error_is_one_line_and_creates_no_folder(
    change: Callable[[Data, Path], list[str | Path]],
    fact: str,
    data: Data,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = data.training_command(tmp_path / "run") + change(data, tmp_path)
    assert fact in error_line(*args, capsys=capsys)
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_architecture_is_rejected(
    data: Data, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_line(*data.training_command(finished_run, "--arch", "resnet32"), capsys=capsys)
    assert "[checkpoint-mismatch]" in message
    assert "--arch resnet20" in message


def test_corrupt_image_ends_the_run_or_is_replaced_and_counted(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "train.beton"
    shutil.copy(data.train, damaged)
    beton = BetonFile.open(data.train)
    with damaged.open("r+b") as file:
        file.seek(int(beton.offsets[7]))
        jpeg = file.read(int(beton.sizes[7]))
        scan = jpeg.index(b"\xff\xda") + 14
        file.seek(int(beton.offsets[7]) + scan)
        file.write(b"\xff\xd7" * ((len(jpeg) - scan - 2) // 2))  # restart markers instead of the data
    few_steps = ["--epochs", "1", "--training.batch_size", "64"]
    args = data.training_command(tmp_path / "run", "--train-dataset", str(damaged), *few_steps)
    with pytest.raises(RebarError, match="sample 7"):
        train_here(*args)
    train_here(*args, "--on-error", "replace")
    assert "corrupt images replaced: 1" in capsys.readouterr().out
    (epoch,) = read_events(tmp_path / "run", "epoch")
    assert epoch["data/corrupt_samples"] == 1


def test_training_runs_without_libturbojpeg(data: Data, tmp_path: Path) -> None:
    command = data.training_command(tmp_path, "--max-steps", "2")
    process = start(command, TURBOJPEG_LIBRARY="/nowhere/libturbojpeg.so")
    assert process.wait() == 0, process.output


def test_data_and_run_folder_have_defaults(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["train_imagenet.py", "--config-file", REPOSITORY / "rn50_configs/tiny.yaml"]
    assert "WRITE_DIR" in error_line(*tiny, capsys=capsys)
    monkeypatch.setenv("WRITE_DIR", str(data.folder))
    train_imagenet.main([str(arg) for arg in [*tiny[1:], "--max-steps", "1"]])
    assert (tmp_path / "runs/tiny/checkpoints/last.pt").is_file()
