"""``run_command``: exit status and output after success, errors, Ctrl-C and unexpected exceptions."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from rebar.cli import (
    CommandParser,
    and_others,
    count,
    display_name,
    phase,
    raise_terminated,
    run_command,
    warn,
)
from rebar.errors import RebarError
from tests.conftest import REPOSITORY


def fail(argv: Sequence[str]) -> None:
    raise RebarError(f"cannot do {list(argv)}", code="disk-full")


def interrupt(argv: Sequence[str]) -> None:
    raise KeyboardInterrupt


def run(main: object, *argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Return the exit status and stderr."""
    with pytest.raises(SystemExit) as exit_:
        run_command(main, argv)  # type: ignore[arg-type]
    return exit_.value.code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def test_run_command_exits_0_after_success(capsys: pytest.CaptureFixture[str]) -> None:
    received: list[Sequence[str]] = []
    assert run(received.append, "--epochs", "3", capsys=capsys) == (0, "")
    assert received == [["--epochs", "3"]]


def test_run_command_prints_error_with_code_and_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(fail, "a", capsys=capsys) == (1, "error: cannot do ['a'] [disk-full]\n")


def test_run_command_prefixes_errors_with_rank_under_torchrun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert run(fail, capsys=capsys) == (1, "[rank 3] error: cannot do [] [disk-full]\n")


def test_run_command_reports_the_error_to_torchrun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    run(fail, "a", capsys=capsys)
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(tmp_path / "error.json"))
    error = ChildFailedError("train_imagenet.py", {0: failure})
    assert "error: cannot do ['a'] [disk-full]" in str(error)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_run_command_exits_with_the_status_of_a_signal(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    def end_itself(argv: Sequence[str]) -> None:
        with raise_terminated():
            os.kill(os.getpid(), number)
            signal.pause()

    status, printed = run(end_itself, capsys=capsys)
    assert status == 128 + number
    assert number.name in printed
    assert signal.getsignal(number) == signal.SIG_DFL


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raise_terminated():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_second_signal_does_not_interrupt_the_cleanup(capsys: pytest.CaptureFixture[str]) -> None:
    def end_itself(argv: Sequence[str]) -> None:
        with raise_terminated():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.pause()
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                cleaned_up.append(True)

    cleaned_up: list[bool] = []
    status, _ = run(end_itself, capsys=capsys)
    assert (status, cleaned_up) == (128 + signal.SIGTERM, [True])


def test_errors_and_warnings_escape_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    def fail_with_name(argv: Sequence[str]) -> None:
        raise RebarError("a\x1b[31m\udcff: missing\nsecond line", code="disk-full")

    assert run(fail_with_name, capsys=capsys)[1] == "error: a\\x1b[31m\\xff: missing\nsecond line [disk-full]\n"
    warn("\rname")
    assert capsys.readouterr().err == "warning: \\rname\n"


def test_command_parser_reports_usage_errors_with_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser()
    parser.add_argument("run")
    status, shown = run(parser.parse_args, "a", "b", capsys=capsys)
    assert (status, shown.count("\n")) == (1, 1)
    assert "[config-invalid-value]" in shown


def test_run_command_prints_the_traceback_too_with_debug(capsys: pytest.CaptureFixture[str]) -> None:
    status, stderr = run(fail, "a", "--debug", "b", capsys=capsys)
    assert status == 1
    assert stderr.startswith("Traceback (most recent call last):")
    assert stderr.endswith("\nerror: cannot do ['a', 'b'] [disk-full]\n")


def test_run_command_exits_130_after_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(interrupt, capsys=capsys) == (130, "interrupted\n")


def test_run_command_raises_unexpected_exceptions() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda argv: print(1 // len(argv)), [])


def test_warn_prints_on_rank_0_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        warn("slow")
    assert capsys.readouterr().err == "warning: slow\n"


def test_counts_agree_with_their_nouns() -> None:
    assert [count(number, "epoch") for number in (0, 1, 2_000)] == ["0 epochs", "1 epoch", "2,000 epochs"]
    assert [count(number, "epoch") for number in (1.0, 1.5, 14.9)] == ["1 epoch", "1.5 epochs", "14.9 epochs"]
    assert [count(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
    assert [and_others("a", number, "image") for number in range(3)] == [
        "a",
        "a and 1 more image",
        "a and 2 more images",
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("n01440764", "n01440764"),
        ("caf\u00e9", "caf\u00e9"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("\ud800", "\\ud800"),
        ("\x1b[31m\r\n", "\\x1b[31m\\r\\n"),
        ("\u202e\u2028\0", "\\u202e\\u2028\\x00"),
        ("a" * 3000, "a" * 59 + "\u2026"),
    ],
)
def test_shown_name(name: str, shown: str) -> None:
    assert display_name(name) == shown


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_path_that_the_terminal_cannot_show_is_printed(encoding: str) -> None:
    code = (
        "import os, rebar.cli; rebar.cli.run_command(lambda argv: print(os.fsdecode(b'caf\\xe9 ') + chr(0x72ac)), [])"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"caf\\udce9 ")


def test_phase_prints_increasing_durations_of_a_long_block_only() -> None:
    lines: list[str] = []
    two = threading.Event()

    def show(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            two.set()

    with phase("compiling", show, after=0.01):
        assert two.wait(timeout=30)
    assert all(re.fullmatch(r"compiling: \d+ s", line) for line in lines)
    shown = len(lines)
    with phase("compiling", show, after=60):
        pass
    assert len(lines) == shown


def test_phase_updates_one_line_of_a_terminal_and_clears_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    printed = ""
    with phase("compiling", after=0.01):
        while printed.count("compiling") < 2:
            printed += capsys.readouterr().err
            time.sleep(0.01)
    printed += capsys.readouterr().err
    assert "\n" not in printed
    assert printed.endswith("\r\033[K")


def test_phase_passes_exceptions_on() -> None:
    with pytest.raises(ValueError, match="inside"), phase("compiling", after=60):
        raise ValueError("inside")
