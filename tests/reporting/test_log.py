"""Tests of rebar.reporting.log."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rebar.errors import RebarError
from rebar.reporting.log import LoggingConfig, RunLog, environment, open_log, read_log, redact_secrets, truncate_log
from rebar.reporting.wandb_log import is_reachable


def test_write_appends_json_lines_with_event_and_time(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    log.write("start", {"epoch": 0, "device": "CPU"})
    log.write("epoch", {"epoch": 0, "val/top1": 0.25, "val/top1_tta": None})
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert first.items() >= {"event": "start", "epoch": 0, "device": "CPU"}.items()
    assert second.items() >= {"event": "epoch", "val/top1": 0.25, "val/top1_tta": None}.items()
    assert 1.7e9 < first["time"] <= second["time"]
    assert read_log(path) == [first, second]


def test_write_replaces_non_finite_values_by_null(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    RunLog(path).write("epoch", {"epoch": 0, "val/loss": float("nan"), "train/loss": float("-inf"), "val/top1": 0.5})
    assert path.read_text().endswith('"epoch": 0, "val/loss": null, "train/loss": null, "val/top1": 0.5}\n')


def test_write_appends_to_existing_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for epoch in range(3):
        RunLog(path).write("epoch", {"epoch": epoch})
        assert [record["epoch"] for record in read_log(path)] == list(range(epoch + 1))


def test_read_log_skips_partial_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "step", "step": 0}\n{"event": "step", "st')
    assert read_log(path) == [{"event": "step", "step": 0}]
    path.write_text("")
    assert read_log(path) == []


def test_write_after_partial_line_starts_new_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "step", "step": 0}\n{"event": "step", "st')
    RunLog(path).write("step", {"step": 1})
    assert [record["step"] for record in read_log(path)] == [0, 1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_write_reports_full_disk() -> None:
    with pytest.raises(RebarError, match="/dev/full") as caught:
        RunLog(Path("/dev/full")).write("step", {"step": 1})
    assert caught.value.code == "disk-full"


def test_write_reports_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(RebarError) as caught:
        RunLog(tmp_path / "log.jsonl").write("step", {"step": 1})
    assert caught.value.code == "log-not-writable"


def test_open_log_writes_nothing_on_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
    config = LoggingConfig(wandb=True)
    with open_log(tmp_path / "log.jsonl", config, is_main=False, options={}) as log:
        log.write("step", {"step": 1})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ Weights & Biases


class FakeWandb(SimpleNamespace):
    """The part of wandb's API that the log uses; records the calls."""

    Error = type("Error", (Exception,), {})
    server = "http://127.0.0.1:1"  # nothing listens there

    def __init__(self, api_key: str | None = None) -> None:
        super().__init__(api=SimpleNamespace(api_key=api_key), options={}, logged=[], exit_codes=[], fails=False)

    def setup(self) -> SimpleNamespace:
        return SimpleNamespace(settings=SimpleNamespace(base_url=self.server))

    def init(self, **options: Any) -> "FakeWandb":
        if options["project"] == "forbidden" and options["mode"] != "offline":
            raise self.Error("permission denied")
        self.options = options
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.axis = (name, step_metric)

    def log(self, values: dict[str, Any]) -> None:
        if self.fails:
            raise BrokenPipeError("service ended")
        self.logged.append(values)

    def finish(self, exit_code: int = 0) -> None:
        self.exit_codes.append(exit_code)


@contextmanager
def answering_server() -> Iterator[str]:
    """Serve 404 for everything, as wandb's servers do for their root."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    fake = FakeWandb(api_key="secret")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("MODE", "INIT_TIMEOUT", "FINISH_TIMEOUT", "PROJECT", "NAME", "RUN_ID"):
        monkeypatch.setenv(f"WANDB_{name}", "")  # removed again after the test
        monkeypatch.delenv(f"WANDB_{name}")
    with answering_server() as fake.server:
        yield fake


def test_wandb_receives_metrics_of_steps_and_epochs(wandb: FakeWandb, tmp_path: Path) -> None:
    config = LoggingConfig(wandb=True, wandb_project="birds")
    with open_log(tmp_path / "log.jsonl", config, is_main=True, options={"lr.lr": 0.5}) as log:
        log.write("start", {"device": "CPU"})
        log.write("step", {"step": 7, "train/loss": 2.5})
        log.write("epoch", {"epoch": 0, "val/top1": 0.25, "val/top1_tta": None})
    expected = {"project": "birds", "name": tmp_path.name, "dir": str(tmp_path), "config": {"lr.lr": 0.5}, "mode": None}
    assert wandb.options.items() >= expected.items()
    assert wandb.logged == [{"step": 7, "train/loss": 2.5}, {"epoch": 1, "val/top1": 0.25}]  # at the end of the epoch
    assert wandb.exit_codes == [0]
    assert len(read_log(tmp_path / "log.jsonl")) == 3


def test_wandb_variables_are_used_unless_an_option_is_given(
    wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("project", "name", "run_id"):
        monkeypatch.setenv(f"WANDB_{name.upper()}", f"my-{name}")
    for config, project, name in (
        (LoggingConfig(wandb=True), "my-project", "my-name"),
        (LoggingConfig(wandb=True, wandb_project="birds", wandb_name="first"), "birds", "first"),
    ):
        with open_log(tmp_path / "log.jsonl", config, is_main=True, options={}):
            pass
        assert wandb.options.items() >= {"project": project, "name": name, "id": "my-run_id"}.items()


def test_wandb_run_finishes_with_exit_code_1_after_exception(wandb: FakeWandb, tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        open_log(tmp_path / "log.jsonl", LoggingConfig(wandb=True), is_main=True, options={}),
    ):
        raise KeyboardInterrupt
    assert wandb.exit_codes == [1]


def test_wandb_logs_offline_without_login(wandb: FakeWandb, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wandb.api.api_key = None
    config = LoggingConfig(wandb=True, wandb_name="mine")
    with open_log(tmp_path / "log.jsonl", config, is_main=True, options={}):
        assert (wandb.options["mode"], wandb.options["name"]) == ("offline", "mine")
    assert "not logged in" in capsys.readouterr().err


def log_two_steps(folder: Path, project: str = "birds") -> int:
    """Log to a wandb project and return the number of records in the run folder."""
    config = LoggingConfig(wandb=True, wandb_project=project)
    with open_log(folder / "log.jsonl", config, is_main=True, options={}) as log:
        log.write("step", {"step": 1})
        log.write("step", {"step": 2})
    return len(read_log(folder / "log.jsonl"))


def test_wandb_logs_offline_if_the_server_refuses_the_run(
    wandb: FakeWandb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert log_two_steps(tmp_path, "forbidden") == 2
    assert (wandb.options["mode"], len(wandb.logged), wandb.exit_codes) == ("offline", 2, [0])
    assert "permission denied" in capsys.readouterr().err


def test_wandb_logs_offline_if_the_server_is_unreachable(
    wandb: FakeWandb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.server = FakeWandb.server
    assert log_two_steps(tmp_path) == 2
    assert (wandb.options["mode"], len(wandb.logged)) == ("offline", 2)
    assert "wandb sync" in capsys.readouterr().err


def test_wandb_failures_during_training_give_one_warning(
    wandb: FakeWandb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.fails = True
    assert log_two_steps(tmp_path) == 2
    assert capsys.readouterr().err.count("service ended") == 1


def test_is_reachable_reports_servers_that_do_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, answering_server() as answering:
        assert not is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.2)
        assert is_reachable(answering)
    assert not is_reachable("http://name.invalid", seconds=5)
    assert not is_reachable("no address")


def test_missing_wandb_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(RebarError) as caught,
        open_log(tmp_path / "log.jsonl", LoggingConfig(wandb=True), is_main=True, options={}),
    ):
        pass
    assert caught.value.code == "wandb-not-installed"


def test_real_wandb_writes_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}.items():
        monkeypatch.setenv(name, value)
    with open_log(tmp_path / "log.jsonl", LoggingConfig(wandb=True), is_main=True, options={"lr.lr": 0.5}) as log:
        log.write("step", {"step": 7, "train/loss": 2.5})
    wandb.teardown()  # its service writes in the background
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"train/loss" in written.read_bytes()


def test_truncate_log_removes_records_after_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    for step in range(4):
        log.write("step", {"step": step})
        log.write("epoch", {"epoch": step // 2})
    log.write("start", {"epoch": 0})
    truncate_log(path, epoch=1, step=3)
    assert [record["step"] for record in read_log(path) if record["event"] == "step"] == [0, 1, 2]
    assert [record["epoch"] for record in read_log(path) if record["event"] == "epoch"] == [0, 0]
    assert read_log(path)[-1]["event"] == "start"
    truncate_log(tmp_path / "none.jsonl", epoch=0, step=0)


def test_resumed_run_continues_its_wandb_run(wandb: FakeWandb, tmp_path: Path) -> None:
    config, ids = LoggingConfig(wandb=True, wandb_tags="small, birds"), []
    for _ in range(2):
        with open_log(tmp_path / "log.jsonl", config, is_main=True, options={}):
            ids.append(wandb.options["id"])
    assert ids[0] == ids[1]
    assert wandb.options["resume"] == "allow"
    assert wandb.options["tags"] == ["small", "birds"]


def test_environment_describes_command_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/train_imagenet.py", "--hf-token", "abc"])
    described = environment()
    assert described["command"] == "train_imagenet.py --hf-token ***"
    assert "torch " in described["packages"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--hf-token abc --lr 1", "--hf-token *** --lr 1"),
        ("--wandb-api-key=abc", "--wandb-api-key=***"),
        ("--password --lr 1", "--password --lr 1"),
    ],
)
def test_redact_secrets_masks_values(command: str, expected: str) -> None:
    assert " ".join(redact_secrets(command.split())) == expected
