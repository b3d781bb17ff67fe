"""How commands end: a mistake is one line and exit status 1, Ctrl-C is 130, a bug of ours a traceback."""

from collections.abc import Sequence

import pytest

from rebar.cli import run_command, warn
from rebar.errors import RebarError


def refuse(argv: Sequence[str]) -> None:
    raise RebarError(f"cannot do {list(argv)}")


def interrupt(argv: Sequence[str]) -> None:
    raise KeyboardInterrupt


def ending(main: object, *argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """The exit status and what was said on stderr."""
    with pytest.raises(SystemExit) as stopped:
        run_command(main, argv)  # type: ignore[arg-type]
    return stopped.value.code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def test_success(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Sequence[str]] = []
    assert ending(seen.append, "--epochs", "3", capsys=capsys) == (0, "")
    assert seen == [["--epochs", "3"]]


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(refuse, "a", capsys=capsys) == (1, "error: cannot do ['a']\n")


def test_a_process_of_several_says_which_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert ending(refuse, capsys=capsys) == (1, "[rank 3] error: cannot do []\n")


def test_debug_lets_the_traceback_through() -> None:
    with pytest.raises(RebarError, match=r"cannot do \['a', 'b'\]"):
        run_command(refuse, ["a", "--debug", "b"])


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(interrupt, capsys=capsys) == (130, "interrupted\n")


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda argv: print(1 // len(argv)), [])


def test_only_the_first_process_warns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        warn("slow")
    assert capsys.readouterr().err == "warning: slow\n"
