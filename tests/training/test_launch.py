"""Tests of rebar.training.launch."""

import json
import shutil
from pathlib import Path

import pytest

import train_imagenet
from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.storage.run_store import RunStatus, State, read_status, write_status
from rebar.training.command_line import data_from_environment, parse_command_line, parse_with_changes
from rebar.training.config import TrainConfig
from tests.conftest import Data, read_events

NO_DATA = ["--data.train_dataset", "absent.beton"]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    created = RunFolder(tmp_path / "run")
    created.prepare(from_scratch=True)
    return created


def put_status(folder: RunFolder, state: State) -> RunStatus:
    status = RunStatus(state, "SIGTERM", 3, 70, 75)
    write_status(folder.status, status)
    return status


def fail(data: Data, folder: RunFolder, *options: str) -> str:
    """Run the command, which must fail. Returns its message."""
    with pytest.raises(RebarError) as error:
        train_imagenet.main([str(word) for word in data.training_command(folder.path, *options)[1:]])
    return str(error.value)


@pytest.mark.parametrize("state", ["interrupted", "running", "failed"])
def test_early_failure_is_written_to_the_status(state: State, data: Data, folder: RunFolder) -> None:
    put_status(folder, state)
    reason = fail(data, folder, *NO_DATA)
    assert read_status(folder.status) == RunStatus("failed", reason, 3, 70, 1)


def test_missing_data_option_is_written_to_the_status(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    put_status(folder, "interrupted")
    monkeypatch.delenv("WRITE_DIR", raising=False)
    with pytest.raises(RebarError) as error:
        train_imagenet.main(["--logging.folder", str(folder.path)])
    assert error.value.code == "data-not-given"
    status = read_status(folder.status)
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", 1)


def test_early_failure_leaves_the_status_of_a_finished_or_active_run(data: Data, folder: RunFolder) -> None:
    finished = put_status(folder, "finished")
    fail(data, folder, *NO_DATA)
    assert read_status(folder.status) == finished
    running = put_status(folder, "running")
    with folder.locked():
        fail(data, folder, *NO_DATA)
    fail(data, folder, *NO_DATA, "--dry-run")
    assert read_status(folder.status) == running


def test_early_failure_is_written_by_the_first_rank_only(
    data: Data, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = put_status(folder, "interrupted")
    monkeypatch.setenv("RANK", "1")
    fail(data, folder, *NO_DATA)
    assert read_status(folder.status) == before


def test_parse_command_line_names_the_folder_after_the_config_file() -> None:
    assert parse_command_line(["--config-file", "rn50_configs/tiny.yaml"]).logging.folder == "runs/tiny"
    assert parse_command_line(["--logging.folder", "mine"]).logging.folder == "mine"


def test_changed_options_are_those_that_differ_from_the_recipe() -> None:
    recipe = "rn50_configs/tiny.yaml"
    same = str(parse_command_line(["--config-file", recipe]).training.epochs)
    config, changed = parse_with_changes(
        ["--config-file", recipe, "--epochs", same, "--smoothing", "0.3", "--logging.folder", "mine"]
    )
    assert changed == {"training.label_smoothing": 0.3, "logging.folder": "mine"}
    assert config.training.label_smoothing == 0.3


def test_default_recipe_has_16_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse_command_line(["--batch-size", "256"])
    assert "rn50_configs/rn50_16_epochs.yaml" in capsys.readouterr().err
    assert config == parse_command_line(["--config-file", "rn50_configs/rn50_16_epochs.yaml", "--batch-size", "256"])
    assert (config.model.arch, config.training.epochs, config.logging.folder) == ("resnet50", 16, "runs/rn50_16_epochs")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("variables", "flags", "reset", "frozen"),
    [
        ({"RESET_SCHED": "1"}, [], True, None),
        ({"FREEZE_LR": "true"}, [], False, 0),
        ({"FREEZE_LR": "1", "FREEZE_LR_VALUE": "0.01", "RESET_SCHED": "yes"}, [], True, 0.01),
        ({"FREEZE_LR": "1", "FREEZE_LR_VALUE": "0.01"}, ["--freeze-lr", "0.02"], False, 0.02),
        ({"FREEZE_LR": "0", "RESET_SCHED": ""}, [], False, None),
        ({"FREEZE_LR_VALUE": "0.01"}, [], False, None),
    ],
)
def test_schedule_variables_are_used_and_announced(
    variables: dict[str, str],
    flags: list[str],
    reset: bool,
    frozen: float | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    checkpoint = parse_command_line(["--config-file", "rn50_configs/tiny.yaml", *flags]).checkpoint
    assert (checkpoint.reset_schedule, checkpoint.freeze_lr) == (reset, frozen)
    announced = capsys.readouterr().err
    assert ("RESET_SCHED and FREEZE_LR" in announced) == (reset or frozen is not None)
    assert ("FREEZE_LR_VALUE has no effect" in announced) == (variables.keys() == {"FREEZE_LR_VALUE"})


def test_run_context_warns_if_plot_and_report_cannot_be_written(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(shutil.copytree(finished_run, tmp_path / "run"))
    for path in (folder.plot, folder.report):
        path.unlink()
        (path / "in the way").mkdir(parents=True)
    train_imagenet.main([str(word) for word in data.training_command(folder.path)[1:]])
    warnings = capsys.readouterr().err
    assert f"To retry: python -m rebar.reporting.plots {folder.path}" in warnings
    assert f"To retry: python -m rebar.reporting {folder.path}" in warnings
    assert json.loads(folder.status.read_text())["state"] == "finished"
    assert len(read_events(folder.path, "end")) == 1
    assert not list(folder.path.glob(".*partial*"))


def test_resume_is_also_a_flag_without_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("checkpoint: {resume: false}")
    monkeypatch.chdir(tmp_path)
    assert parse_command_line(["--resume"]).checkpoint.resume == "auto"
    assert parse_command_line(["--config-file", "a.yaml"]).checkpoint.resume == "none"


@pytest.mark.parametrize("name", sorted(TrainConfig.ignored_keys))
def test_arguments_that_only_ffcv_imagenet_needs_give_a_warning(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([f"--{name}=1"], [f"--{name}", "1"], [f"--{name}"]):
        parse_command_line(["--epochs", "3", *argv, "--arch", "resnet18"])
        assert f"warning: {name} has no effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "argv", "expected"),
    [
        ({"IMAGENET_ROOT": "/data"}, [], ["--data.train_dataset=/data", "--data.val_dataset=/data"]),
        ({"IMAGENET_ROOT": "/data"}, ["--train-dataset", "a.beton"], []),
        ({"IMAGENET_ROOT": "/data", "WRITE_DIR": "/nvme"}, [], []),
        ({}, [], []),
    ],
)
def test_imagenet_root_gives_the_data_if_nothing_else_does(
    environment: dict[str, str], argv: list[str], expected: list[str]
) -> None:
    assert data_from_environment(argv, environment) == expected


@pytest.mark.parametrize(
    ("words", "ranks", "per_rank"),
    [
        ("--global-batch-size 512", "4", 128),
        ("--global-batch-size 512", "", 512),
        ("--batch-size 64 --global-batch-size 512", "4", 128),
        ("--batch-size 64", "4", 64),
    ],
)
def test_global_batch_size_is_divided_by_the_ranks(
    words: str, ranks: str, per_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", ranks)
    assert parse_command_line(words.split()).training.batch_size == per_rank


def test_batch_size_on_the_command_line_overrides_the_global_batch_size_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("global_batch_size: 512")
    given = ["--config-file", str(tmp_path / "a.yaml")]
    assert parse_command_line(given).training.batch_size == 512
    assert parse_command_line([*given, "--batch-size", "64"]).training.batch_size == 64


def test_a_global_batch_size_that_ranks_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RebarError) as caught:
        parse_command_line(["--global-batch-size", "512"])
    assert caught.value.code == "config-invalid-value"
    assert str(caught.value).startswith("--global-batch-size = 512 ")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("-b 0", "-b"),
        ("--batch-size=0", "--batch-size"),
        ("--training.batch_size 0", "--training.batch_size"),
        ("--grad_clip_norm -1", "--grad_clip_norm"),
        ("--scheduler wavy", "--scheduler"),
        ("--epochs x", "--epochs"),
    ],
)
def test_errors_name_options_as_they_were_typed(words: str, name: str) -> None:
    with pytest.raises(RebarError) as caught:
        parse_command_line(words.split())
    assert f"{name} = " in str(caught.value)


def test_an_unusable_run_folder_is_named_by_its_flag(data: Data, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = fail(data, RunFolder(tmp_path / "unused"), "--out-dir", str(tmp_path / "file/run"))
    assert "logging.folder" not in message


def test_resolution_sets_training_and_validation_unless_given() -> None:
    config = parse_command_line(["--validation.resolution", "256", "--resolution", "176"])
    resolution = config.resolution
    assert (resolution.min_res, resolution.max_res, config.validation.resolution) == (176, 176, 256)
    assert parse_command_line(["--resolution", "176"]).validation.resolution == 176


def test_print_config_resolves_the_data_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WRITE_DIR", "/data/betons")
    with pytest.raises(SystemExit):
        parse_command_line(["--print-config"])
    assert "train_dataset: /data/betons/train.beton" in capsys.readouterr().out
