"""The log of a run: one JSON object a line, written by the first process only."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rebar.errors import RebarError
from rebar.reporting.log import LoggingConfig, RunLog, forget_after, open_log, read_log


def test_records_are_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    log.write("start", {"epoch": 0, "device": "CPU"})
    log.write("epoch", {"epoch": 0, "val/top1": 0.25, "val/top1_tta": None})
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert first.items() >= {"event": "start", "epoch": 0, "device": "CPU"}.items()
    assert second.items() >= {"event": "epoch", "val/top1": 0.25, "val/top1_tta": None}.items()
    assert 1.7e9 < first["time"] <= second["time"]
    assert read_log(path) == [first, second]


def test_what_is_no_finite_number_is_null(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    RunLog(path).write("epoch", {"epoch": 0, "val/loss": float("nan"), "train/loss": float("-inf"), "val/top1": 0.5})
    assert path.read_text().endswith('"epoch": 0, "val/loss": null, "train/loss": null, "val/top1": 0.5}\n')


def test_every_record_is_on_disk_at_once_and_a_resumed_run_appends(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for epoch in range(3):
        RunLog(path).write("epoch", {"epoch": epoch})
        assert [record["epoch"] for record in read_log(path)] == list(range(epoch + 1))


def test_a_line_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "step", "step": 0}\n{"event": "step", "st')
    assert read_log(path) == [{"event": "step", "step": 0}]
    path.write_text("")
    assert read_log(path) == []


def test_the_record_after_a_line_cut_off_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "step", "step": 0}\n{"event": "step", "st')
    RunLog(path).write("step", {"step": 1})
    assert [record["step"] for record in read_log(path)] == [0, 1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_told() -> None:
    with pytest.raises(RebarError, match="/dev/full"):
        RunLog(Path("/dev/full")).write("step", {"step": 1})


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
    config = LoggingConfig(wandb=True)
    with open_log(tmp_path / "log.jsonl", config, is_main=False, settings={}) as log:
        log.write("step", {"step": 1})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ Weights & Biases


class FakeWandb(SimpleNamespace):
    """What the log uses of wandb, and what it was told."""

    Error = type("Error", (Exception,), {})

    def __init__(self, api_key: str | None = None) -> None:
        super().__init__(api=SimpleNamespace(api_key=api_key), options={}, logged=[], exit_codes=[])

    def init(self, **options: Any) -> "FakeWandb":
        if options["project"] == "forbidden":
            raise self.Error("permission denied")
        self.options = options
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.axis = (name, step_metric)

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int = 0) -> None:
        self.exit_codes.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb(api_key="secret")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return fake


def test_wandb_gets_the_same_metrics(wandb: FakeWandb, tmp_path: Path) -> None:
    config = LoggingConfig(wandb=True, wandb_project="birds")
    with open_log(tmp_path / "log.jsonl", config, is_main=True, settings={"lr.lr": 0.5}) as log:
        log.write("start", {"device": "CPU"})
        log.write("step", {"step": 7, "train/loss": 2.5})
        log.write("epoch", {"epoch": 0, "val/top1": 0.25, "val/top1_tta": None})
    expected = {"project": "birds", "name": tmp_path.name, "dir": str(tmp_path), "config": {"lr.lr": 0.5}, "mode": None}
    assert wandb.options.items() >= expected.items()
    assert wandb.logged == [{"step": 7, "train/loss": 2.5}, {"epoch": 1, "val/top1": 0.25}]  # at its end
    assert wandb.exit_codes == [0]
    assert len(read_log(tmp_path / "log.jsonl")) == 3


def test_wandb_is_told_of_a_failure(wandb: FakeWandb, tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        open_log(tmp_path / "log.jsonl", LoggingConfig(wandb=True), is_main=True, settings={}),
    ):
        raise KeyboardInterrupt
    assert wandb.exit_codes == [1]


def test_without_a_login_wandb_logs_offline(
    wandb: FakeWandb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.api.api_key = None
    config = LoggingConfig(wandb=True, wandb_name="mine")
    with open_log(tmp_path / "log.jsonl", config, is_main=True, settings={}):
        assert (wandb.options["mode"], wandb.options["name"]) == ("offline", "mine")
    assert "not logged in" in capsys.readouterr().err


def test_what_wandb_refuses_is_told(wandb: FakeWandb, tmp_path: Path) -> None:
    config = LoggingConfig(wandb=True, wandb_project="forbidden")
    with (
        pytest.raises(RebarError, match=r"logging.wandb: permission denied"),
        open_log(tmp_path / "log.jsonl", config, is_main=True, settings={}),
    ):
        pass


def test_a_missing_wandb_comes_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(RebarError, match="pip install wandb"),
        open_log(tmp_path / "log.jsonl", LoggingConfig(wandb=True), is_main=True, settings={}),
    ):
        pass


def test_wandb_itself_writes_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}.items():
        monkeypatch.setenv(name, value)
    with open_log(tmp_path / "log.jsonl", LoggingConfig(wandb=True), is_main=True, settings={"lr.lr": 0.5}) as log:
        log.write("step", {"step": 7, "train/loss": 2.5})
    wandb.teardown()  # its service writes in the background
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"train/loss" in written.read_bytes()


def test_what_will_be_logged_again_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    for step in range(4):
        log.write("step", {"step": step})
        log.write("epoch", {"epoch": step // 2})
    log.write("start", {"epoch": 0})
    forget_after(path, epoch=1, step=3)
    assert [record["step"] for record in read_log(path) if record["event"] == "step"] == [0, 1, 2]
    assert [record["epoch"] for record in read_log(path) if record["event"] == "epoch"] == [0, 0]
    assert read_log(path)[-1]["event"] == "start"
    forget_after(tmp_path / "none.jsonl", epoch=0, step=0)


def test_wandb_goes_on_with_the_same_run(wandb: FakeWandb, tmp_path: Path) -> None:
    config, ids = LoggingConfig(wandb=True, wandb_tags="small, birds"), []
    for _ in range(2):
        with open_log(tmp_path / "log.jsonl", config, is_main=True, settings={}):
            ids.append(wandb.options["id"])
    assert ids[0] == ids[1]
    assert wandb.options["resume"] == "allow"
    assert wandb.options["tags"] == ["small", "birds"]
