"""``spot watch`` with real training: the notice, the upload to S3, and resuming on the next instance."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.aws.conftest import Outcome, run_cli, run_failing, wait_for
from tests.aws.strict_aws import StrictAws
from tests.aws.test_run_transfer import PLACE, manifest, run_folder
from tests.conftest import REPOSITORY, Data, read_events

Metadata = Callable[..., dict[str, str]]
WATCH = ["--poll-seconds", "0.05"]


def notice(seconds: float = 120) -> dict[str, str]:
    """Return the metadata of an instance that EC2 interrupts in ``seconds``."""
    time = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return {"spot/instance-action": json.dumps({"action": "terminate", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ")})}


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Return a function that starts a process in its own group. All are killed after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start_process(*words: str | Path) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start_process
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_step(folder: Path, process: "subprocess.Popen[bytes]", step: int) -> None:
    def has_logged_step() -> bool:
        assert process.poll() is None, "training ended before it could be interrupted"
        return (folder / "log.jsonl").exists() and any(each["step"] >= step for each in read_events(folder, "step"))

    wait_for(has_logged_step, 100)


def watch_for(folder: Path, *words: str | Path, expect: int = 0) -> Outcome:
    return run_cli("spot", "watch", folder, PLACE, *WATCH, *words, expect=expect)


@pytest.mark.slow
def test_spot_watch_stops_training_and_uploads_what_it_saved(
    s3: Any, metadata: Metadata, start: Any, data: Data, tmp_path: Path
) -> None:
    """Real training, for which only the watch sees the notice. tests/test_upload.py resumes elsewhere."""
    metadata_values = metadata()
    training = start(*data.training_command(tmp_path / "first", "--spot-notice", "off", "--epochs", "50"))
    wait_for_step(tmp_path / "first", training, 5)
    metadata_values.update(notice())
    outcome = watch_for(tmp_path / "first", "--group", str(training.pid), expect=75).out
    assert "EC2 notice: terminate in 1" in outcome
    assert "interrupted at epoch" in outcome
    step = json.loads((tmp_path / "first/status.json").read_text())["step"]
    assert manifest(s3)["step"] == step > 5
    assert last_in_s3(s3) == (tmp_path / "first/checkpoints/last.pt").read_bytes()
    training.wait(timeout=60)


PROCESS = """
import json, pathlib, signal, sys, time
folder, on_signal, after = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
status = json.loads((folder / "status.json").read_text())

def end(state):
    if state:
        status.update(state=state, step=12, time=time.time(), reason="the reason")
        (folder / "checkpoints/last.pt").write_bytes(b"twelve")
        (folder / "status.new").write_text(json.dumps(status))
        (folder / "status.new").rename(folder / "status.json")
    sys.exit()

signal.signal(signal.SIGTERM, signal.SIG_IGN if on_signal == "ignore" else lambda *_: end(on_signal))
(folder / "ready").touch()
time.sleep(after)
end(sys.argv[4])
"""
"""A substitute for training. Arguments: FOLDER, STATE on SIGTERM (or ignore), SECONDS, STATE after these."""


def start_process(start: Any, folder: Path, on_signal: str, seconds: float = 100, after: str = "") -> int:
    """Start a process that trains from step 7; return its id."""
    run_folder(folder, step=7, last=b"seven", state="running")
    process = start("-c", PROCESS, folder, on_signal, str(seconds), after)
    wait_for((folder / "ready").exists)
    return int(process.pid)


def last_in_s3(s3: Any) -> bytes:
    key = "runs/g5-16/" + manifest(s3)["checkpoints"]["last.pt"]["object"]
    content: bytes = s3.get_object(Bucket="bucket", Key=key)["Body"].read()
    return content


def test_spot_watch_uploads_finished_training(s3: Any, metadata: Metadata, start: Any, tmp_path: Path) -> None:
    metadata()
    pid = start_process(start, tmp_path / "run", "ignore", 1.0, "finished")
    (tmp_path / "pid").write_text(f"{pid}\n")
    outcome = watch_for(tmp_path / "run", "--pidfile", tmp_path / "pid").out
    assert "finished at epoch 0, step 12" in outcome
    assert (manifest(s3)["step"], last_in_s3(s3)) == (12, b"twelve")


@pytest.mark.parametrize(
    ("state", "message"), [("failed", "training failed: the reason [training-failed]"), ("", "[training-killed]")]
)
def test_spot_watch_reports_failed_training(
    state: str, message: str, s3: Any, metadata: Metadata, start: Any, tmp_path: Path
) -> None:
    metadata()
    pid = start_process(start, tmp_path / "run", "ignore", 1.0, state)
    assert message in run_failing("spot", "watch", tmp_path / "run", PLACE, *WATCH, "--pid", str(pid))
    assert last_in_s3(s3) == (b"twelve" if state else b"seven")


def test_spot_watch_uploads_the_earlier_checkpoint_if_training_does_not_save(
    s3: Any, metadata: Metadata, start: Any, tmp_path: Path
) -> None:
    """Training hangs, so its last checkpoint is uploaded while there is time."""
    metadata(**notice(2))
    pid = start_process(start, tmp_path / "run", "ignore")
    words: list[str | Path] = [
        "spot",
        "watch",
        tmp_path / "run",
        PLACE,
        *WATCH,
        "--upload-seconds",
        "1.5",
        "--pid",
        str(pid),
    ]
    assert "[training-not-saved]" in run_failing(*words)
    assert last_in_s3(s3) == b"seven"


def test_spot_watch_warns_about_a_rebalance_recommendation_once(
    s3: Any, metadata: Metadata, start: Any, tmp_path: Path
) -> None:
    metadata_values = metadata(**{"events/recommendations/rebalance": '{"noticeTime": "2026-11-21T12:00:00Z"}'})
    pid = start_process(start, tmp_path / "run", "interrupted")
    threading.Timer(1.0, lambda: metadata_values.update(notice())).start()
    outcome = watch_for(tmp_path / "run", "--pid", str(pid), expect=75)
    assert outcome.err.count("EC2 sent a rebalance recommendation") == 1
    assert "interrupted at epoch 0, step 12: the reason" in outcome.out


def test_spot_watch_ignores_the_status_of_an_earlier_attempt(
    s3: Any, metadata: Metadata, start: Any, tmp_path: Path
) -> None:
    metadata(**notice())
    pid = start_process(start, tmp_path / "run", "interrupted")
    run_folder(tmp_path / "run", step=7, last=b"seven", state="interrupted")  # left by the attempt before
    assert "step 12" in watch_for(tmp_path / "run", "--pid", str(pid), expect=75).out
    assert last_in_s3(s3) == b"twelve"


def test_spot_watch_of_training_that_is_about_to_exit(s3: Any, metadata: Metadata, start: Any, tmp_path: Path) -> None:
    """Its status is already ``finished`` when the watch starts."""
    metadata()
    pid = start_process(start, tmp_path / "run", "ignore", 5.0)
    run_folder(tmp_path / "run", step=12, last=b"twelve", state="finished")
    status = json.loads((tmp_path / "run/status.json").read_text())
    (tmp_path / "run/status.json").write_text(json.dumps({**status, "time": time.time()}))
    assert "finished at epoch 1, step 12" in watch_for(tmp_path / "run", "--pid", str(pid)).out


def test_spot_watch_of_a_systemd_unit(
    s3: Any, metadata: Metadata, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemctl is replaced by a script that acts on a process."""
    metadata(**notice())
    pid = start_process(start, tmp_path / "run", "interrupted")
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(
        f"""#!/bin/sh
case "$*" in
    "show --property=ActiveState --value rebar")
        if grep -q "State:.[SR]" /proc/{pid}/status; then echo active; else echo inactive; fi ;;
    "kill --signal=SIGTERM rebar") kill -TERM {pid} ;;
    "show --property=MainPID --value rebar") echo {pid} ;;
    "show --property=ActiveState --value other") echo inactive ;;
    *) exit 9 ;;
esac
"""
    )
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")
    assert "stopping unit rebar" in watch_for(tmp_path / "run", "--unit", "rebar", expect=75).out
    assert "[training-not-running]" in run_failing("spot", "watch", tmp_path / "run", PLACE, "--unit", "other")


def test_spot_watch_without_training_fails(aws: StrictAws, tmp_path: Path) -> None:
    words: list[str | Path] = ["spot", "watch", tmp_path, PLACE]
    assert "process 4194304 is not running" in run_failing(*words, "--pid", "4194304")
    assert "process group 4194304 is not running" in run_failing(*words, "--group", "4194304")
    assert "[training-not-running]" in run_failing(*words, "--group", str(os.getpgrp()))
    assert "[pidfile-invalid]" in run_failing(*words, "--pidfile", tmp_path / "none")
    assert "[run-not-found]" in run_failing("spot", "watch", tmp_path / "none", PLACE, "--pid", "1")


def test_spot_watch_warns_about_an_unreachable_metadata_service_once(
    s3: Any, metadata: Metadata, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    pid = start_process(start, tmp_path / "run", "ignore", 1.0, "finished")
    outcome = watch_for(tmp_path / "run", "--pid", str(pid))
    assert outcome.err.count("does not answer, so spot interruptions are not detected") == 1
